package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/terraphim/tgr/vm"
)

const maxAgent = 128 << 20

// Build makes what the store does not have yet, or has from other inputs, and opens the image. The kernel and the
// initramfs take milliseconds, the root filesystem a minute. The old image stays in place until the new one is
// complete; a second build of the same image waits for the first.
func (s *Store) Build(ctx context.Context, b BuildConfig) (*Image, error) {
	if b.Name == "" {
		b.Name = DefaultName
	}
	dir, err := s.path(b.Name)
	if err != nil {
		return nil, err
	}
	if kind, _ := kindOf(b.From); b.From != "" && kind == "" {
		return nil, fmt.Errorf("build image %s: %w", b.Name, errSource(b.From))
	}
	if b.From != "" && b.Full {
		return nil, fmt.Errorf("build image %s: the container engine is of Debian's packages, and cannot be added to %s", b.Name, b.From)
	}
	if b.Agent == "" {
		return nil, fmt.Errorf("build image %s: no agent: BuildConfig.Agent must name the tgr-guest binary", b.Name)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("build image %s: %w", b.Name, err)
	}
	unlock, err := vm.LockFile(ctx, dir+".lock")
	if err != nil {
		return nil, fmt.Errorf("build image %s: %w", b.Name, err)
	}
	defer unlock()
	if err := s.build(ctx, dir, b); err != nil {
		return nil, fmt.Errorf("build image %s: %w", b.Name, err)
	}
	return s.Open(ctx, b.Name)
}

// build is called with the image's lock held.
func (s *Store) build(ctx context.Context, dir string, b BuildConfig) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	old, err := readManifest(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.log().Warn("the image's manifest cannot be read and is made anew", "image", b.Name, "error", err)
	}
	m := Manifest{Format: manifestFormat, Built: time.Now().UTC().Truncate(time.Second)}
	if m.Kernel, err = b.kernelPart(ctx, dir, old.Kernel); err != nil {
		return err
	}
	if m.Initrd, err = b.initrdPart(ctx, dir, m.Kernel.Release, old.Initrd); err != nil {
		return err
	}
	if m.Root, err = s.rootPart(ctx, dir, b, old.Root); err != nil {
		return err
	}
	if !slices.Equal(m.files(), old.files()) {
		if err := m.write(dir); err != nil {
			return err
		}
	}
	prune(dir, m)
	return nil
}

// usable reports whether the file that an earlier manifest names is still what it was.
func usable(dir string, f File) bool {
	if f.Name == "" {
		return false
	}
	file, err := os.Open(filepath.Join(dir, f.Name))
	if err != nil {
		return false
	}
	defer file.Close()
	return f.checkQuick(file) == nil
}

func (b BuildConfig) kernelPart(ctx context.Context, dir string, old Kernel) (Kernel, error) {
	k := Kernel{}
	path := b.Kernel
	if path == "" {
		var err error
		if path, _, err = FindKernel(); err != nil {
			return k, err
		}
	}
	k.Release = releaseOf(path)
	var err error
	if k.Source, err = hashFile(ctx, path, "", nil); err != nil {
		return k, err
	}
	if old.Source.SHA256 == k.Source.SHA256 && old.Release == k.Release && usable(dir, old.File) {
		k.File = old.File
		return k, nil
	}
	vmlinux, err := readVmlinux(path)
	if err != nil {
		return k, err
	}
	k.File, err = writeFile(ctx, dir, "vmlinux-"+k.Source.SHA256[:12], func(w io.Writer) error {
		_, err := w.Write(vmlinux)
		return err
	})
	return k, err
}

func (b BuildConfig) initrdPart(ctx context.Context, dir, release string, old Initrd) (Initrd, error) {
	agent, modules, err := b.initrdInput(release)
	if err != nil {
		return Initrd{}, err
	}
	i := Initrd{Agent: hashBytes(agent)}
	for _, m := range modules {
		i.Modules = append(i.Modules, m.name)
	}
	name := "initramfs-" + initramfsKey(agent, modules)
	if old.File.Name == name && usable(dir, old.File) {
		i.File = old.File
		return i, nil
	}
	i.File, err = writeFile(ctx, dir, name, func(w io.Writer) error { return writeInitramfs(w, agent, modules) })
	return i, err
}

// initrdInput reads the agent and the modules.
func (b BuildConfig) initrdInput(release string) (agent []byte, modules []module, err error) {
	fi, err := os.Stat(b.Agent)
	if err != nil {
		return nil, nil, fmt.Errorf("the agent: %w", err)
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxAgent {
		return nil, nil, fmt.Errorf("the agent %s is not a program of at most %d bytes", b.Agent, maxAgent)
	}
	if agent, err = os.ReadFile(b.Agent); err != nil {
		return nil, nil, fmt.Errorf("the agent: %w", err)
	}
	if err := checkStatic(agent); err != nil {
		return nil, nil, fmt.Errorf("the agent %s: %w", b.Agent, err)
	}
	dir := b.Modules
	if dir == "" {
		dir = filepath.Join("/lib/modules", release)
	}
	want := bootModules()
	if b.Full {
		want = append(want, engineModules()...)
	}
	modules, err = readModules(dir, want)
	return agent, modules, err
}

func (s *Store) rootPart(ctx context.Context, dir string, b BuildConfig, old Root) (Root, error) {
	recipe := b.recipe()
	if !b.Force && old.Recipe == recipe && usable(dir, old.File) {
		return old, nil
	}
	if b.Registry == "" {
		b.Registry = npmRegistry(ctx)
	}
	work, err := os.MkdirTemp(dir, "build-*"+tmpSuffix)
	if err != nil {
		return Root{}, err
	}
	defer os.RemoveAll(work)
	start := time.Now()
	r, err := b.buildRoot(ctx, work)
	if err != nil {
		return r, err
	}
	r.File.Name = "root-" + r.File.SHA256[:12] + ".ext4"
	if err := os.Rename(filepath.Join(work, rootImage), filepath.Join(dir, r.File.Name)); err != nil {
		return r, err
	}
	s.log().Info("root filesystem built", "image", b.Name, "bytes", r.File.Size, "took", time.Since(start).Round(time.Millisecond))
	return r, nil
}

// WriteInitramfs writes the initramfs of the agent b.Agent and the kernel of that release to path, outside of any
// store: for tests and experiments.
func (b BuildConfig) WriteInitramfs(path, release string) error {
	agent, modules, err := b.initrdInput(release)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(writeInitramfs(f, agent, modules), f.Close())
}

// writeFile makes a file of the image in one step and describes it.
func writeFile(ctx context.Context, dir, name string, write func(io.Writer) error) (File, error) {
	tmp := filepath.Join(dir, name+tmpSuffix)
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return File{}, err
	}
	defer os.Remove(tmp)
	w := bufio.NewWriterSize(f, 1<<20)
	if err := errors.Join(write(w), w.Flush(), f.Close()); err != nil {
		return File{}, fmt.Errorf("write %s: %w", tmp, err)
	}
	path := filepath.Join(dir, name)
	if err := os.Rename(tmp, path); err != nil {
		return File{}, err
	}
	return hashFile(ctx, path, "hash "+name, nil)
}
