package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	maxConfigFile = 1 << 20
	maxIndexFile  = 64 << 20
	maxShards     = 1 << 12
	singleFile    = "model.safetensors"
	indexFile     = "model.safetensors.index.json"
)

// files is where a model's files come from.
type files interface {
	// small reads a whole file of at most limit bytes; a missing one is fs.ErrNotExist.
	small(name string, limit int64) ([]byte, error)
	// weights returns a whole file, valid until close.
	weights(name string) ([]byte, error)
	close() error
}

func readLimited(f fs.File, name string, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", name, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("cannot read %s: it is longer than %d bytes", name, limit)
	}
	return data, nil
}

// folder is a folder of the file system; its weights are mapped, not read.
type folder struct {
	dir  string
	maps [][]byte
}

func (d *folder) open(name string) (*os.File, fs.FileInfo, error) {
	path := filepath.Join(d.dir, name)
	info, err := os.Stat(path) // before opening, which would wait on a pipe
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("cannot read %s: it is not a regular file", path)
	}
	f, err := os.Open(path)
	return f, info, err
}

func (d *folder) small(name string, limit int64) ([]byte, error) {
	f, _, err := d.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return readLimited(f, name, limit)
}

func (d *folder) weights(name string) ([]byte, error) {
	f, info, err := d.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	size := info.Size()
	if size == 0 {
		return nil, nil
	}
	if size != int64(int(size)) {
		return nil, fmt.Errorf("cannot map %s: %d bytes are too many for this machine", name, size)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("cannot map %s: %w", name, err)
	}
	d.maps = append(d.maps, data)
	return data, nil
}

func (d *folder) close() error {
	var errs []error
	for _, m := range d.maps {
		errs = append(errs, unix.Munmap(m))
	}
	d.maps = nil
	return errors.Join(errs...)
}

// fsFiles reads from an fs.FS, such as the embedded model. The weights are copied to memory once.
type fsFiles struct{ fsys fs.FS }

func (f fsFiles) small(name string, limit int64) ([]byte, error) {
	file, err := f.fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	return readLimited(file, name, limit)
}

func (f fsFiles) weights(name string) ([]byte, error) { return fs.ReadFile(f.fsys, name) }

func (f fsFiles) close() error { return nil }

// loadEntries reads every tensor of a model: of its single file, or else of the shards its index lists.
func loadEntries(src files) ([]entry, error) {
	data, err := src.weights(singleFile)
	if err == nil {
		entries, err := parseSafetensors(data)
		if err != nil {
			return nil, fmt.Errorf("cannot read %s: %w", singleFile, err)
		}
		return entries, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	index, err := src.small(indexFile, maxIndexFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot find weights: neither %s nor %s is there, and other formats are not read: %w",
			singleFile, indexFile, err)
	}
	if err != nil {
		return nil, err
	}
	return loadShards(src, index)
}

func loadShards(src files, index []byte) ([]entry, error) {
	where, shards, err := parseIndex(index)
	if err != nil {
		return nil, err
	}
	var all []entry
	found := map[string]string{}
	for _, shard := range shards {
		data, err := src.weights(shard)
		if err != nil {
			return nil, fmt.Errorf("cannot open a file that %s lists: %w", indexFile, err)
		}
		entries, err := parseSafetensors(data)
		if err != nil {
			return nil, fmt.Errorf("cannot read %s: %w", shard, err)
		}
		for _, e := range entries {
			if other, ok := found[e.name]; ok {
				return nil, fmt.Errorf("cannot use tensor %s: it is in %s and in %s", e.name, other, shard)
			}
			found[e.name] = shard
		}
		all = append(all, entries...)
	}
	for name, shard := range where {
		if found[name] != shard {
			return nil, fmt.Errorf("cannot find tensor %s in %s, where %s puts it", name, shard, indexFile)
		}
	}
	return all, nil
}

// parseIndex returns the shard of each tensor, and the shards in order of name.
func parseIndex(data []byte) (map[string]string, []string, error) {
	o, err := parseObject(indexFile, data)
	if err != nil {
		return nil, nil, err
	}
	var where map[string]string
	if err := json.Unmarshal(o.m["weight_map"], &where); err != nil || len(where) == 0 {
		return nil, nil, fmt.Errorf("cannot use %s: weight_map must map tensors to files", indexFile)
	}
	set := map[string]bool{}
	for name, shard := range where {
		// The name may lead nowhere but into the folder, whatever wrote the index. A link in the folder is
		// its owner's choice: download caches keep their files behind links.
		if !fs.ValidPath(shard) || !filepath.IsLocal(shard) || shard == "." {
			return nil, nil, fmt.Errorf("cannot use %s: the file %q of %s is outside the folder",
				indexFile, short([]byte(shard)), short([]byte(name)))
		}
		set[shard] = true
	}
	if len(set) > maxShards {
		return nil, nil, fmt.Errorf("cannot use %s: %d files are more than %d", indexFile, len(set), maxShards)
	}
	shards := make([]string, 0, len(set))
	for shard := range set {
		shards = append(shards, shard)
	}
	slices.Sort(shards)
	return where, shards, nil
}
