package github

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// template is a prepared checkout: a tar stream without its end and without .git/config, which is kept apart because
// it may get a token when it is used.
type template struct {
	s    *Source
	tar  string
	conf string
	url  string // what a token is for
}

// templateOf names the template of a checkout. state tells apart what the same options give at different times.
func (s *Source) templateOf(c *clone, spec CheckoutSpec, state string) *template {
	state += spec.readers
	spec.Token, spec.FetchToken = "", ""
	spec.Repo.DefaultBranch, spec.Repo.CloneURL = "", ""
	key, err := json.Marshal([]any{1, c.dir, c.remote, spec, state}) // 1: the format of templates
	if err != nil {
		panic(err) // strings and numbers
	}
	name := filepath.Join(s.c.Dir, "checkouts", shortHash(string(key)))
	return &template{s: s, tar: name + ".tar", conf: name + ".config", url: s.c.BaseURL + "/"}
}

// exists also makes the template the last to be thrown away.
func (t *template) exists() bool {
	now := time.Now()
	return os.Chtimes(t.tar, now, now) == nil
}

// open returns the whole tar stream.
func (t *template) open(spec CheckoutSpec) (io.ReadCloser, error) {
	conf, err := os.ReadFile(t.conf)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(t.tar)
	if err != nil {
		return nil, err
	}
	if spec.Token != "" {
		conf = append(conf, "[http "+quoteConfig(t.url)+"]\n\textraheader = "+quoteConfig(tokenHeader(spec.Token))+"\n"...)
	}
	var head bytes.Buffer
	tw := tar.NewWriter(&head)
	now := time.Now().Truncate(time.Second)
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeDir, Name: ".git/", Mode: 0o755},
		{Typeflag: tar.TypeReg, Name: ".git/config", Mode: 0o644, Size: int64(len(conf))},
	} {
		h.Uid, h.Gid, h.ModTime = spec.UID, spec.GID, now
		err = errors.Join(err, tw.WriteHeader(h))
	}
	_, werr := tw.Write(conf)
	if err = errors.Join(err, werr, tw.Flush()); err != nil {
		f.Close()
		return nil, err
	}
	end := make([]byte, 1024) // two blocks of zeros end an archive
	return &joined{Reader: io.MultiReader(&head, f, bytes.NewReader(end)), Closer: f}, nil
}

// joined reads from several and closes the one that needs it.
type joined struct {
	io.Reader
	io.Closer
}

// pack writes the template from a working tree, whole or not at all.
func (t *template) pack(work string, uid, gid int) error {
	conf, err := os.ReadFile(filepath.Join(work, ".git", "config"))
	if err != nil {
		return err
	}
	if err := writeWhole(t.conf, func(w io.Writer) error {
		_, err := w.Write(conf)
		return err
	}); err != nil {
		return err
	}
	if err := writeWhole(t.tar, func(w io.Writer) error { return packTree(w, work, uid, gid) }); err != nil {
		return err
	}
	return t.s.evict(t.tar)
}

// packTree writes a tree as a tar stream without its end. Symbolic links are kept as they are.
func packTree(w io.Writer, root string, uid, gid int) error {
	tw := tar.NewWriter(w)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if name = filepath.ToSlash(name); name == ".git" || name == ".git/config" {
			return nil // added when the template is used
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		// Whole seconds, cut off: that is what git's index is compared with.
		h := &tar.Header{Name: name, Uid: uid, Gid: gid, ModTime: fi.ModTime().Truncate(time.Second)}
		switch {
		case d.IsDir():
			h.Typeflag, h.Mode, h.Name = tar.TypeDir, 0o755, name+"/"
		case fi.Mode()&fs.ModeSymlink != 0:
			h.Typeflag, h.Mode = tar.TypeSymlink, 0o777
			if h.Linkname, err = os.Readlink(path); err != nil {
				return err
			}
		case fi.Mode().IsRegular():
			h.Typeflag, h.Size, h.Mode = tar.TypeReg, fi.Size(), 0o644
			if fi.Mode()&0o111 != 0 {
				h.Mode = 0o755
			}
		default:
			return nil // git makes nothing else
		}
		if err := tw.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
			return err
		}
		return copyFile(tw, path)
	})
	return errors.Join(err, tw.Flush())
}

func copyFile(w io.Writer, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// writeWhole makes a file appear with all its content, or not at all.
func writeWhole(name string, fill func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(name), "new-")
	if err != nil {
		return err
	}
	err = errors.Join(fill(f), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// staleAfter is longer than anything is being made.
const staleAfter = 24 * time.Hour

// evict throws the templates away that were not used for longest, until the rest is within the bound. keep stays.
// Who reads a template at that moment goes on reading: its file has only lost its name.
func (s *Source) evict(keep string) error {
	entries, err := os.ReadDir(filepath.Dir(keep))
	if err != nil {
		return err
	}
	type file struct {
		name string
		size int64
		used time.Time
	}
	var files []file
	total := int64(0)
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			continue
		}
		if !strings.HasSuffix(e.Name(), ".tar") {
			// What was being made when the server was killed.
			if left := strings.HasPrefix(e.Name(), "work-") || strings.HasPrefix(e.Name(), "new-"); left && time.Since(fi.ModTime()) > staleAfter {
				os.RemoveAll(filepath.Join(filepath.Dir(keep), e.Name()))
			}
			continue
		}
		total += fi.Size()
		files = append(files, file{filepath.Join(filepath.Dir(keep), e.Name()), fi.Size(), fi.ModTime()})
	}
	slices.SortFunc(files, func(a, b file) int { return a.used.Compare(b.used) })
	for _, f := range files {
		if total <= s.c.MaxCache {
			break
		}
		if f.name == keep {
			continue
		}
		if err := os.Remove(f.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		os.Remove(strings.TrimSuffix(f.name, ".tar") + ".config") // actions have none
		total -= f.size
	}
	return nil
}
