package model

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// maxRef bounds the file that says which commit a branch is, in bytes.
const maxRef = 1 << 10

var (
	repository = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$`)
	commit     = regexp.MustCompile(`^[0-9a-f]{40}$`)
)

// Find says which folder a model's name means: the folder of that name or, where there is none and the name is one such as
// org/model, the snapshot of a revision (a branch, tag or commit) that Hugging Face's tools keep in their cache. The cache is
// where their variables say, which getenv reads: HF_HUB_CACHE, else hub in HF_HOME, else in XDG_CACHE_HOME or the home folder.
func Find(name, revision string, getenv func(string) string) (string, error) {
	if _, err := os.Stat(name); err == nil || !repository.MatchString(name) {
		return name, nil // what is wrong with it is said by who opens it
	}
	cache := cacheFolder(getenv)
	repo := filepath.Join(cache, "models--"+strings.ReplaceAll(name, "/", "--"))
	if _, err := os.Stat(repo); err != nil {
		return "", fmt.Errorf("cannot find %s: there is no such folder, and none of that name in %s, where `hf download %s` puts it", name, cache, name)
	}
	snapshot, err := snapshotOf(repo, revision)
	if err != nil {
		return "", fmt.Errorf("cannot find revision %s of %s in %s: %w", revision, name, cache, err)
	}
	return snapshot, nil
}

func cacheFolder(getenv func(string) string) string {
	for _, from := range []struct{ variable, below string }{
		{"HF_HUB_CACHE", ""}, {"HUGGINGFACE_HUB_CACHE", ""}, {"HF_HOME", "hub"}, {"XDG_CACHE_HOME", "huggingface/hub"},
	} {
		if dir := getenv(from.variable); dir != "" {
			return filepath.Join(dir, from.below)
		}
	}
	return filepath.Join(getenv("HOME"), ".cache", "huggingface", "hub")
}

// snapshotOf is the folder of a revision: a commit has one of its name, and a file says which commit a branch or tag is.
func snapshotOf(repo, revision string) (string, error) {
	if !filepath.IsLocal(revision) {
		return "", errors.New("this is no revision's name")
	}
	if !commit.MatchString(revision) {
		text, err := (&folder{dir: repo}).small(filepath.Join("refs", revision), maxRef)
		if err != nil {
			return "", err
		}
		if revision = strings.TrimSpace(string(text)); !commit.MatchString(revision) {
			return "", fmt.Errorf("its file holds no commit, but %.60q", revision)
		}
	}
	dir := filepath.Join(repo, "snapshots", revision)
	_, err := os.Stat(dir)
	return dir, err
}
