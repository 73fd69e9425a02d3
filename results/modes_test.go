package results

import (
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Whatever the umask, nobody else reads what jobs have uploaded, the keys, or the database. The test does not run beside
// others, whose umask it changes.
func TestFileModes(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	dir := filepath.Join(t.TempDir(), "results")
	c := began(t, opened(t, Config{Dir: dir}), jobOn(1, "main"))
	c.want(200, c.upload("a", "of a"))
	url := c.want(200, c.artifact("CreateArtifact", map[string]any{"name": "c"})).field("signed_upload_url")
	c.want(201, c.block(url, 0, "half of c"))
	var files []string
	err := filepath.WalkDir(dir, func(path string, f fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := f.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
		if !f.IsDir() {
			files = append(files, strings.Split(name, "/")[0])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"blobs", "keys", "results.db", "results.db-wal"} {
		if !slices.Contains(files, want) {
			t.Errorf("there is no file in %s: %q", want, files)
		}
	}
}
