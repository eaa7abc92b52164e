package server

import (
	"fmt"
	"slices"
	"strings"

	"github.com/infinite-llm/infinite/engine/grammar"
)

// toolPaths finds what a client wrote by its path in the schema that namedSchema and requiredSchema make of tools.
type toolPaths struct {
	tools []tool
	named string // the function whose arguments the answer is; "": the answer is a list of calls
}

// client is the path in the request of a path in the schema.
func (p toolPaths) client(path string) string {
	if p.named != "" {
		at := slices.IndexFunc(p.tools, func(t tool) bool { return t.name == p.named })
		return p.parameters(at, strings.TrimPrefix(path, "$"))
	}
	for i := range p.tools {
		if rest, ok := below(path, fmt.Sprintf("$.items.anyOf[%d].properties.parameters", i)); ok {
			return p.parameters(i, rest)
		}
	}
	for i, t := range p.tools {
		for key, defs := range members(t.schema()) {
			if (key != "$defs" && key != "definitions") || defs[0] != '{' {
				continue
			}
			for name := range members(defs) {
				if _, ok := below(path, grammar.PathTo("$."+key, name)); ok {
					return p.parameters(i, strings.TrimPrefix(path, "$"))
				}
			}
		}
	}
	return path
}

// parameters is a path in those of one tool; objects may have wrapped them.
func (p toolPaths) parameters(tool int, rest string) string {
	if !isObject(p.tools[tool].schema()) {
		if inner, ok := below(rest, ".allOf[0]"); ok {
			rest = inner
		}
	}
	return fmt.Sprintf("tools[%d].function.parameters%s", tool, rest)
}

// below is what follows a part of a path.
func below(path, part string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(path, part)
	return rest, ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}
