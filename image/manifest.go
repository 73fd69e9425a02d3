package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const manifestName = "manifest.json"

// Manifest records what an image was made of and what its files must be.
type Manifest struct {
	Format int       `json:"format"` // of this file; manifestFormat
	Built  time.Time `json:"built"`
	Kernel Kernel    `json:"kernel"`
	Initrd Initrd    `json:"initrd"`
	Root   Root      `json:"root"`
}

const manifestFormat = 1

// Kernel is the kernel part of a manifest.
type Kernel struct {
	File    File   `json:"file"`
	Release string `json:"release"`
	Source  File   `json:"source"` // the bzImage that it was extracted from
}

// Initrd is the initramfs part of a manifest.
type Initrd struct {
	File    File     `json:"file"`
	Agent   string   `json:"agent_sha256"`
	Modules []string `json:"modules"` // in load order
}

// Root is the root filesystem part of a manifest.
type Root struct {
	File     File      `json:"file"`
	Recipe   string    `json:"recipe_sha256"` // of everything that says how it is built
	Nodes    []NPM     `json:"npm"`
	Suite    string    `json:"suite,omitempty"`    // of Debian
	Packages []Package `json:"packages,omitempty"` // as installed, by dpkg

	From   string       `json:"from,omitempty"`   // the OCI image that it was made of, as it was named
	Digest string       `json:"digest,omitempty"` // of that image
	Config *ImageConfig `json:"config,omitempty"` // of that image
}

// Package is a Debian package.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// File is a file that a manifest vouches for.
type File struct {
	Name   string    `json:"name"` // relative to the image's folder, or the path of a source
	Size   int64     `json:"size"`
	MTime  time.Time `json:"mtime"`
	SHA256 string    `json:"sha256"`
}

func (m Manifest) files() []File { return []File{m.Kernel.File, m.Initrd.File, m.Root.File} }

func readManifest(dir string) (Manifest, error) {
	var m Manifest
	b, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err != nil {
		return m, fmt.Errorf("image: %w", err)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("image: %s: %w", filepath.Join(dir, manifestName), err)
	}
	if m.Format != manifestFormat {
		return m, fmt.Errorf("image: %s: format %d, this program knows %d: %w", dir, m.Format, manifestFormat, os.ErrNotExist)
	}
	for _, f := range m.files() {
		if f.Name == "" || filepath.Base(f.Name) != f.Name {
			return m, fmt.Errorf("image: %s: %q is not a file name", filepath.Join(dir, manifestName), f.Name)
		}
	}
	return m, nil
}

// write replaces the folder's manifest in one step, after everything that it names is on the disk.
func (m Manifest) write(dir string) error {
	b, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, manifestName+tmpSuffix)
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, manifestName))
}

// checkQuick compares size and modification time: what a truncated or replaced file gives away.
func (f File) checkQuick(file *os.File) error {
	fi, err := file.Stat()
	if err != nil {
		return err
	}
	if fi.Size() != f.Size {
		return fmt.Errorf("%s has %d bytes, the manifest says %d", f.Name, fi.Size(), f.Size)
	}
	if !fi.ModTime().Equal(f.MTime) {
		return fmt.Errorf("%s was changed at %s, after it was built at %s", f.Name, fi.ModTime().UTC().Format(time.RFC3339), f.MTime.UTC().Format(time.RFC3339))
	}
	return nil
}

func (f File) checkHash(ctx context.Context, dir string, progress Progress) error {
	got, err := hashFile(ctx, filepath.Join(dir, f.Name), "verify "+f.Name, progress)
	if err != nil {
		return err
	}
	if got.SHA256 != f.SHA256 {
		return fmt.Errorf("%s has SHA-256 %s, the manifest says %s", f.Name, got.SHA256, f.SHA256)
	}
	return nil
}

// hashFile describes the file at path under its base name.
func hashFile(ctx context.Context, path, step string, progress Progress) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	h := sha256.New()
	r := &counted{r: ctxReader{ctx, f}, step: step, total: fi.Size(), progress: progress}
	if _, err := io.Copy(h, r); err != nil {
		return File{}, fmt.Errorf("%s: %w", path, err)
	}
	return File{Name: filepath.Base(path), Size: fi.Size(), MTime: fi.ModTime(), SHA256: hex.EncodeToString(h.Sum(nil))}, nil
}

// ctxReader stops reading when its context ends.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// holdShared opens a file and takes a shared lock on it, which prune respects.
func holdShared(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s is being removed: %w", path, err)
	}
	return f, nil
}

// prune deletes what neither the manifest names nor anybody holds open by holdShared: leftovers of earlier builds.
func prune(dir string, m Manifest) {
	keep := map[string]bool{manifestName: true}
	for _, f := range m.files() {
		keep[f.Name] = true
	}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if keep[e.Name()] {
			continue
		}
		path := filepath.Join(dir, e.Name())
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.RemoveAll(path)
		}
		f.Close()
	}
}
