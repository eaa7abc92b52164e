package main

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A model by its name, from the cache that Hugging Face's tools keep: snapshots are links to files of other names.
func TestModelFromCache(t *testing.T) {
	const revision = "0123456789abcdef0123456789abcdef01234567"
	home := t.TempDir()
	repo := filepath.Join(home, "hub", "models--org--tiny-model")
	from, err := filepath.Abs("../../model/bundled")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"blobs", "refs", "snapshots/" + revision} {
		if err := os.MkdirAll(filepath.Join(repo, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	files, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.IsDir() || strings.HasSuffix(f.Name(), ".go") {
			continue
		}
		blob := "../../blobs/of-" + f.Name()
		snapshot := filepath.Join(repo, "snapshots", revision)
		if err := os.Symlink(filepath.Join(from, f.Name()), filepath.Join(snapshot, blob)); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(blob, filepath.Join(snapshot, f.Name())); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(repo, "refs", "main"), []byte(revision), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HF_HUB_CACHE", "")
	t.Setenv("HF_HOME", home)
	p := serve(t, "org/tiny-model", "--dtype", "float32", poolFlag(t, 100))
	want := serve(t, "--dtype", "float32", poolFlag(t, 100)).complete(body(prompt(50, 1), 20))
	sameAnswer(t, want, p.complete(body(prompt(50, 1), 20)))
	r, err := http.Get(p.url + "/v1/models")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if text, err := io.ReadAll(r.Body); err != nil || !strings.Contains(string(text), `"id":"org/tiny-model"`) {
		t.Errorf("the API says %s, %v", text, err)
	}
}
