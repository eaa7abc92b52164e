package config

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestStray(t *testing.T) {
	for entry, want := range map[string]bool{
		"INFINITE_PROT=1": true, "INFINITE_PORT=1": false, "INFINITE_Port=1": true, "INFINITE_=": true, "INFINITE_API_KEY=x=y": false,
		"INFINITE_CONFIG=": false, "INFINITE_CUDA_LIBRARY=x": false, "INFINITE_CUDA_LIBRARYS=x": true, "INFINITE_TEST_HOLD=1": false,
		"INFINITY_PORT=1": false, "INFINITE=1": false, "PATH=/bin": false, "": false, "INFINITE_CLUSTR_PORT=8001": true,
		// A service named infinite, and one named infinite-api.
		"INFINITE_SERVICE_HOST=10.0.0.1": false, "INFINITE_SERVICE_PORT=80": false, "INFINITE_SERVICE_PORT_HTTP=80": false, "INFINITE_PORT_80_TCP=tcp://10.0.0.1:80": false,
		"INFINITE_PORT_80_TCP_PROTO=tcp": false, "INFINITE_API_SERVICE_HOST=10.0.0.1": false, "INFINITE_API_PORT=tcp://10.0.0.1:80": false, "INFINITE_API_PORT_80_TCP_ADDR=10.0.0.1": false,
	} {
		if Stray(entry) != want {
			t.Errorf("%s: %v, want %v", entry, !want, want)
		}
	}
	c := Default()
	for _, f := range Fields(&c) {
		if Stray(f.Env() + "=x") {
			t.Errorf("%s is a setting", f.Env())
		}
	}
}

// What the sources read is known here, and what is known here is read: Go and C name a variable in a literal.
func TestVariablesOfTheSources(t *testing.T) {
	c := Default()
	known := slices.Clone(otherVariables)
	for _, f := range Fields(&c) {
		known = append(known, f.Env())
	}
	literal := regexp.MustCompile(`"(INFINITE_[A-Z0-9_]+)=?"`)
	read := map[string]string{} // variable -> a file that names it
	for _, root := range []string{"../../engine", "../../rdma", "../../csrc"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() {
				if name := filepath.ToSlash(path); name == "../../engine/config" || name == "../../csrc/tests" || d.Name() == "testdata" {
					return fs.SkipDir
				}
				return nil
			}
			if strings.HasSuffix(path, "_test.go") || !slices.Contains([]string{".go", ".c", ".h", ".cu", ".cuh", ".cc", ".cpp"}, filepath.Ext(path)) {
				return nil
			}
			text, err := os.ReadFile(path)
			for _, m := range literal.FindAllSubmatch(text, -1) {
				read[string(m[1])] = path
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, path := range read {
		if !slices.Contains(known, name) && !strings.HasPrefix(name, "INFINITE_TEST_") {
			t.Errorf("%s names %s, which is no setting and not among otherVariables", path, name)
		}
	}
	for _, name := range otherVariables {
		if read[name] == "" {
			t.Errorf("nobody reads %s", name)
		}
	}
}
