package server

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"

	"github.com/infinite-llm/infinite/engine/tokenizer"
	"github.com/infinite-llm/infinite/engine/toolcall"
)

// Limits of the tools of a request, and of the calls in one message.
const (
	maxTools     = 512
	maxToolBytes = 1 << 20 // of all tools
	maxCalls     = 512
)

// toolName is what a function may be called: OpenAI's characters, and the dot that others use between parts.
var toolName = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,128}$`)

// askedTools are a request's fields about tools.
type askedTools struct{ list, choice json.RawMessage }

// takeTools takes the tools out of the fields that are refused, for an endpoint that can offer them.
func (u *unsupported) takeTools() askedTools {
	asked := askedTools{u.Tools, u.ToolChoice}
	u.Tools, u.ToolChoice = nil, nil
	return asked
}

// tool is a checked function.
type tool struct {
	name       string
	parameters json.RawMessage // an object, nil: not said
}

// toolPlan is what a request's tools come to. The zero value is a request without tools.
type toolPlan struct {
	list    json.RawMessage // what the template gets, as the client wrote it
	form    toolcall.Form   // in which calls are looked for, "": in none
	forced  string          // the function that is to be called
	require bool            // a call of any is needed
	single  bool            // one call at most is told
	shortID bool
	schema  []byte // what the answer must be like, nil: anything
	paths   toolPaths
}

// planTools checks the tools of a request, and what is to be called.
func (s *Server) planTools(asked askedTools, parallel bool) (toolPlan, error) {
	var p toolPlan
	mode, function, err := readChoice(asked.choice)
	switch {
	case err != nil:
		return p, err
	case isUnset(asked.list) && (mode == "required" || function != ""):
		return p, badRequest("tool_choice", "tool_choice needs tools, and there are none.")
	case isUnset(asked.list):
		return p, nil
	}
	tools, err := readTools(asked.list)
	if err != nil || mode == "none" {
		return p, err
	}
	if function != "" && !slices.ContainsFunc(tools, func(t tool) bool { return t.name == function }) {
		return p, badRequest("tool_choice", "tool_choice names the function %q, which is not among the tools.", function)
	}
	if !s.tools.offers {
		return p, badRequest("tools", "this model's chat template does not know tools (another one can be given to the server with --chat-template).")
	}
	p = toolPlan{list: asked.list, single: !parallel, shortID: s.tools.form == toolcall.Mistral, paths: toolPaths{tools, function}}
	switch {
	case function != "":
		p.forced = function
		p.schema, err = namedSchema(tools, function)
	case mode == "required":
		p.require = true
		p.schema, err = requiredSchema(tools, p.single)
	case s.tools.unknown:
		err = badRequest("tools", "the form in which this model writes calls is not known (--tool-call-parser says it to the server).")
	default:
		p.form = s.tools.form
	}
	return p, err
}

// readChoice reads tool_choice: a word, or the name of a function.
func readChoice(raw json.RawMessage) (mode, function string, err error) {
	if isUnset(raw) {
		return "auto", "", nil
	}
	if raw[0] == '"' {
		if mode = unquote(raw); slices.Contains([]string{"none", "auto", "required"}, mode) {
			return mode, "", nil
		}
	} else if raw[0] == '{' {
		var choice struct {
			Type     string          `json:"type"`
			Function json.RawMessage `json:"function"`
		}
		var named struct {
			Name string `json:"name"`
		}
		if readObject(raw, &choice) == nil && choice.Type == "function" && len(choice.Function) > 0 && choice.Function[0] == '{' &&
			readObject(choice.Function, &named) == nil && named.Name != "" {
			return "", named.Name, nil
		}
	}
	return "", "", badRequest("tool_choice", "tool_choice must be none, auto, required, or {\"type\": \"function\", \"function\": {\"name\": ...}}.")
}

func readTools(raw json.RawMessage) ([]tool, error) {
	if len(raw) > maxToolBytes {
		return nil, badRequest("tools", "tools may have at most %d bytes, got %d.", maxToolBytes, len(raw))
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		return nil, badRequest("tools", "tools must be a list.")
	}
	if len(list) > maxTools {
		return nil, badRequest("tools", "tools may have at most %d entries, got %d.", maxTools, len(list))
	}
	tools, seen := make([]tool, len(list)), map[string]bool{}
	for i, one := range list {
		t, problem := readTool(one)
		if problem == "" && seen[t.name] {
			problem = "its function has the name of another one"
		}
		if problem != "" {
			return nil, badRequest("tools", "cannot use tools[%d]: %s.", i, problem)
		}
		tools[i], seen[t.name] = t, true
	}
	return tools, nil
}

// readTool reads one tool, or says what is wrong with it. strict needs no more than its type: a call is not held to
// its schema, unless the request asks for this very call.
func readTool(raw json.RawMessage) (t tool, problem string) {
	var outer struct {
		Type     string          `json:"type"`
		Function json.RawMessage `json:"function"`
	}
	var f struct {
		Name        string          `json:"name"`
		Description *string         `json:"description"`
		Parameters  json.RawMessage `json:"parameters"`
		Strict      *bool           `json:"strict"`
	}
	switch {
	case raw[0] != '{':
		return t, "it is not an object"
	case readObject(raw, &outer) != nil || outer.Type != "function":
		return t, "its type is not function"
	case len(outer.Function) == 0 || outer.Function[0] != '{':
		return t, "it has no function"
	}
	if err := readObject(outer.Function, &f); err != nil {
		return t, "its function has a name or description that is no string, or strict that is neither true nor false"
	}
	switch {
	case !toolName.MatchString(f.Name):
		return t, "its function needs a name of 1 to 128 letters, digits, underscores, dashes and dots"
	case len(f.Parameters) == 0 || isNull(f.Parameters):
		f.Parameters = nil
	case f.Parameters[0] != '{':
		return t, "the parameters of its function are not an object"
	}
	return tool{f.Name, f.Parameters}, ""
}

// checkCalls checks the calls of an assistant's message.
func checkCalls(message int, raw json.RawMessage) error {
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil || len(list) > maxCalls {
		return badRequest("messages", "the tool_calls of message %d are not a list of at most %d calls.", message, maxCalls)
	}
	for i, one := range list {
		var call struct {
			ID       string          `json:"id"`
			Type     *string         `json:"type"`
			Function json.RawMessage `json:"function"`
		}
		var f struct {
			Name      string          `json:"name"`
			Arguments json.RawMessage `json:"arguments"`
		}
		switch {
		case one[0] != '{' || readObject(one, &call) != nil || orDefault(call.Type, "function") != "function" ||
			len(call.Function) == 0 || call.Function[0] != '{' || readObject(call.Function, &f) != nil || f.Name == "":
			return badRequest("messages", "tool_calls[%d] of message %d is not a call of a function with id, type, and function with name and arguments.", i, message)
		case len(f.Arguments) > 0 && strings.IndexByte(`"{n`, f.Arguments[0]) < 0:
			return badRequest("messages", "the arguments of tool_calls[%d] of message %d are not a string.", i, message)
		}
	}
	return nil
}

// toolSupport is what the chat template does with tools.
type toolSupport struct {
	offers  bool          // it shows tools
	calls   bool          // and calls of them in the conversation
	form    toolcall.Form // in which they are looked for in answers, "": nowhere
	unknown bool          // because it is not known which
}

// probeTools renders a conversation with a tool and a call to see what the template does with them. parser is
// --tool-call-parser.
func probeTools(tok *tokenizer.Tokenizer, parser string) (support toolSupport) {
	const called, offered = "probe_called", "probe_offered"
	tools := json.RawMessage(`[{"type":"function","function":{"name":"` + offered + `","description":"a","parameters":{"type":"object","properties":{"a":{"type":"string","description":"a"}},"required":["a"]}}}]`)
	ask := tokenizer.Message{Role: "user", Content: "a"}
	system := tokenizer.Message{Role: "system", Content: "a"}
	// The id is one that Mistral's templates take.
	call := tokenizer.Message{Role: "assistant", ToolCalls: json.RawMessage(`[{"id":"abcdefgh1","type":"function","function":{"name":"` + called + `","arguments":"{\"a\": \"b\"}"}}]`)}
	result := tokenizer.Message{Role: "tool", Content: "a", Name: called, ToolCallID: "abcdefgh1"}
	shows := func(name string, vars map[string]any, messages ...tokenizer.Message) (string, bool) {
		text, err := tok.ApplyChat(messages, true, vars)
		return text, err == nil && strings.Contains(text, name)
	}
	with := map[string]any{"tools": tools}
	for _, messages := range [][]tokenizer.Message{{ask}, {system, ask}} {
		_, shown := shows(offered, with, messages...)
		support.offers = support.offers || shown
	}
	for _, vars := range []map[string]any{nil, with} {
		for _, messages := range [][]tokenizer.Message{{ask, call}, {ask, call, result}} {
			text, shown := shows(called, vars, messages...)
			support.calls = support.calls || shown
			if form, ok := toolcall.Detect(text, called); ok && support.form == "" {
				support.form = form
			}
		}
	}
	switch parser {
	case "", "auto":
		support.unknown = support.form == ""
	case "none":
		support.form = ""
	default:
		support.form = toolcall.Form(parser)
	}
	return support
}
