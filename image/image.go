// Package image builds and keeps what a virtual machine boots from: Debian's kernel as an ELF file, an initramfs
// that holds the agent and the kernel modules it needs, a read-only root filesystem with Node runtimes, and blank
// writable disks. Everything is built from Debian packages and the npm registry, recorded in a manifest with its
// hash, and verified before use.
package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/terraphim/tgr/vm"
)

// DefaultName is the image that is built when no other is named.
const DefaultName = "debian-12"

// ErrNotBuilt is returned (wrapped) by Open for an image that is not in the store.
var ErrNotBuilt = errors.New("image not built")

var nameRE = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)
})

// Progress is told what a build is doing: step is for a person; done and total are bytes, and total is 0 where
// it is not known. It is called from one goroutine at a time.
type Progress func(step string, done, total int64)

// Store is a folder of images. Its methods are safe for concurrent use, also by several processes:
// a file lock per image keeps two builds apart.
type Store struct {
	Dir string       // default: $TGR_IMAGE_DIR, or tgr/images in the user's cache folder
	Log *slog.Logger // nil: nothing is logged
}

// BuildConfig says what to build. The zero value but for Agent is the default image.
type BuildConfig struct {
	Name     string   // default: DefaultName; lower-case letters, digits, '.', '_', '-', at most 64
	Agent    string   // path of the static tgr-guest binary; required
	Kernel   string   // path of a bzImage; default: the newest /boot/vmlinuz-*-cloud-amd64
	Modules  string   // the kernel's modules; default: /lib/modules/<release>
	Mirror   string   // Debian mirror; default: deb.debian.org
	Registry string   // npm registry; default: what npm is configured to use, else registry.npmjs.org
	Progress Progress // nil: silent
	Full     bool     // with a container engine, for container jobs, services and docker actions
	From     string   // an OCI image in the place of Debian's packages: oci:REFERENCE, oci-layout:FOLDER or docker-archive:FILE
	Force    bool     // build the root filesystem again even though the cached one was made by the same recipe
}

// Image is a complete image. It holds shared locks on its files, so that a later build does not prune them;
// the caller closes it when no further machine will be started from it.
type Image struct {
	Name     string
	Kernel   string // ELF vmlinux, for a PVH boot
	Initrd   string // cpio archive, not compressed
	Root     string // ext4, read-only, shared by all machines
	Release  string // of the kernel: 6.1.0-56-cloud-amd64
	Manifest Manifest

	store *Store
	held  []*os.File
}

// Close releases the image's files for pruning. Machines that are running are not affected.
func (im *Image) Close() error {
	for _, f := range im.held {
		f.Close()
	}
	im.held = nil
	return nil
}

func (s *Store) dir() (string, error) {
	if dir := cmp.Or(s.Dir, os.Getenv("TGR_IMAGE_DIR")); dir != "" {
		return filepath.Abs(dir)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("image: no folder to keep images in: %w", err)
	}
	return filepath.Join(cache, "tgr", "images"), nil
}

// path returns the folder of an image and refuses names that would leave the store.
func (s *Store) path(name string) (string, error) {
	if !nameRE().MatchString(name) {
		return "", fmt.Errorf("image: %q is not a name: want lower-case letters, digits, '.', '_' and '-', at most 64", name)
	}
	dir, err := s.dir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, name), nil
}

func (s *Store) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

// Open returns the image of that name ("" is DefaultName) after a cheap check: the files that its manifest names
// exist with the recorded size and modification time. The error wraps ErrNotBuilt when there is no such image.
func (s *Store) Open(ctx context.Context, name string) (*Image, error) {
	if name == "" {
		name = DefaultName
	}
	dir, err := s.path(name)
	if err != nil {
		return nil, err
	}
	for {
		m, err := readManifest(dir)
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("image %s: %w: run `tgr image build`", name, ErrNotBuilt)
		} else if err != nil {
			return nil, err
		}
		im := &Image{Name: name, Release: m.Kernel.Release, Manifest: m, store: s}
		if err = im.hold(dir); err == nil {
			return im, nil
		}
		im.Close()
		// A build may have replaced the image between the two steps: then there is another manifest by now.
		if again, rerr := readManifest(dir); rerr == nil && !slices.Equal(again.files(), m.files()) && ctx.Err() == nil {
			continue
		}
		return nil, fmt.Errorf("image %s is damaged: %w: run `tgr image rm %s` and build again", name, err, name)
	}
}

// hold opens the files that the manifest names, so that no build prunes them, and checks them.
func (im *Image) hold(dir string) error {
	for _, part := range []struct {
		file File
		path *string
	}{{im.Manifest.Kernel.File, &im.Kernel}, {im.Manifest.Initrd.File, &im.Initrd}, {im.Manifest.Root.File, &im.Root}} {
		*part.path = filepath.Join(dir, part.file.Name)
		f, err := holdShared(*part.path)
		if err != nil {
			return err
		}
		im.held = append(im.held, f)
		if err := part.file.checkQuick(f); err != nil {
			return err
		}
	}
	return nil
}

// Verify hashes every file of the image and compares it with the manifest. It takes about a second.
func (s *Store) Verify(ctx context.Context, name string, progress Progress) error {
	im, err := s.Open(ctx, name)
	if err != nil {
		return err
	}
	defer im.Close()
	dir := filepath.Dir(im.Root)
	for _, f := range im.Manifest.files() {
		if err := f.checkHash(ctx, dir, progress); err != nil {
			return fmt.Errorf("image %s is damaged: %w: run `tgr image rm %s` and build again", im.Name, err, im.Name)
		}
	}
	return nil
}

// Listed is one image of a store.
type Listed struct {
	Name     string    `json:"name"`
	Built    time.Time `json:"built"`
	Release  string    `json:"kernel"`
	Bytes    int64     `json:"bytes"` // on disk, everything in its folder
	Manifest Manifest  `json:"-"`
	Problem  string    `json:"problem,omitempty"` // why it cannot be used; "" if it can
}

// List returns the images of the store by name. An image that cannot be opened is listed with its problem.
func (s *Store) List(ctx context.Context) ([]Listed, error) {
	dir, err := s.dir()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("image: list: %w", err)
	}
	var out []Listed
	for _, e := range entries {
		if !e.IsDir() || !nameRE().MatchString(e.Name()) {
			continue
		}
		l := Listed{Name: e.Name()}
		l.Bytes, _ = vm.Allocated(filepath.Join(dir, e.Name()))
		im, err := s.Open(ctx, e.Name())
		if err != nil {
			l.Problem = err.Error()
		} else {
			l.Manifest, l.Release, l.Built = im.Manifest, im.Release, im.Manifest.Built
			im.Close()
		}
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b Listed) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Remove deletes an image. Machines that run from it keep their open files; it waits for a build to end.
func (s *Store) Remove(ctx context.Context, name string) error {
	dir, err := s.path(name)
	if err != nil {
		return err
	}
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("image %s: %w", name, ErrNotBuilt)
	}
	unlock, err := vm.LockFile(ctx, dir+".lock")
	if err != nil {
		return fmt.Errorf("image: remove %s: %w", name, err)
	}
	defer unlock()
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("image: remove %s: %w", name, err)
	}
	return nil
}

// Prune deletes what no image needs and nobody holds: the files of builds that were cut off or have been followed by
// others, and blank disks, which are made again when they are wanted. It returns the bytes that were freed. It waits for
// builds to end.
func (s *Store) Prune(ctx context.Context) (int64, error) {
	dir, err := s.dir()
	if err != nil {
		return 0, err
	}
	list, err := s.List(ctx)
	if err != nil {
		return 0, err
	}
	freed := int64(0)
	for _, l := range list {
		folder := filepath.Join(dir, l.Name)
		unlock, err := vm.LockFile(ctx, folder+".lock")
		if err != nil {
			return freed, fmt.Errorf("image: prune %s: %w", l.Name, err)
		}
		if m, err := readManifest(folder); err == nil {
			before, _ := vm.Allocated(folder)
			prune(folder, m)
			after, _ := vm.Allocated(folder)
			freed += before - after
		}
		unlock()
	}
	blank := filepath.Join(dir, blankDisks)
	blanks, _ := vm.Allocated(blank)
	freed += blanks
	if err := os.RemoveAll(blank); err != nil {
		return freed, fmt.Errorf("image: prune: %w", err)
	}
	return freed, nil
}

// counted reports the bytes that pass through it.
type counted struct {
	r           io.Reader
	step        string
	done, total int64
	said        time.Time
	progress    Progress
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.done += int64(n)
	if c.progress != nil && (err != nil || time.Since(c.said) > 200*time.Millisecond) {
		c.said = time.Now()
		c.progress(c.step, c.done, c.total)
	}
	return n, err
}
