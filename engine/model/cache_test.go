package model

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	const first, second = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"
	home := t.TempDir()
	t.Chdir(home)
	repo := filepath.Join(home, "hub", "models--org--some.model-1B")
	for name, text := range map[string]string{
		"refs/main": first + "\n", "refs/pr/1": second, "refs/gone": strings.Repeat("a", 40), "refs/broken": "../../../etc",
		"snapshots/" + first + "/config.json": "{}", "snapshots/" + second + "/config.json": "{}",
	} {
		write(t, filepath.Join(repo, name), text)
	}
	write(t, filepath.Join(home, "local/folder/config.json"), "{}")
	elsewhere := t.TempDir()
	for _, c := range []struct {
		name, revision string
		env            map[string]string
		want           string // "": refused
	}{
		{"org/some.model-1B", "main", map[string]string{"HF_HOME": home}, "snapshots/" + first},
		{"org/some.model-1B", "pr/1", map[string]string{"HF_HUB_CACHE": filepath.Join(home, "hub"), "HF_HOME": elsewhere}, "snapshots/" + second},
		{"org/some.model-1B", second, map[string]string{"HF_HOME": home}, "snapshots/" + second},
		{"org/some.model-1B", "gone", map[string]string{"HF_HOME": home}, ""},
		{"org/some.model-1B", "broken", map[string]string{"HF_HOME": home}, ""},
		{"org/some.model-1B", "v1", map[string]string{"HF_HOME": home}, ""},
		{"org/some.model-1B", "../main", map[string]string{"HF_HOME": home}, ""},
		{"org/some.model-1B", "", map[string]string{"HF_HOME": home}, ""},
		{"org/some.model-1B", "main", map[string]string{"HF_HOME": elsewhere, "XDG_CACHE_HOME": home}, ""},
		{"org/another", "main", map[string]string{"HF_HOME": home}, ""},
	} {
		got, err := Find(c.name, c.revision, func(name string) string { return c.env[name] })
		if c.want == "" && err == nil || c.want != "" && (err != nil || got != filepath.Join(repo, c.want)) {
			t.Errorf("%s at %q with %v: %q, %v", c.name, c.revision, c.env, got, err)
		}
	}
	// What is a folder stays one, and what is no name of a repository is left to who opens it.
	for _, name := range []string{"", "local/folder", "./org/some.model-1B", "/org/model", "a/b/c", "nothing", "../org"} {
		if got, err := Find(name, "main", func(string) string { return home }); err != nil || got != name {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
}

// The cache's usual place, in a home folder.
func TestCacheFolder(t *testing.T) {
	for want, env := range map[string]map[string]string{
		"/h/.cache/huggingface/hub": {"HOME": "/h"}, "/x/huggingface/hub": {"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/f/hub": {"HF_HOME": "/f", "XDG_CACHE_HOME": "/x"},
	} {
		if got := cacheFolder(func(name string) string { return env[name] }); got != want {
			t.Errorf("%v: %s", env, got)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
