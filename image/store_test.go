package image

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr/vm"
)

// fixture is a store with everything that a build needs but mmdebstrap: a kernel, modules and an agent of a few
// bytes, and a root filesystem of the right recipe.
func fixture(t *testing.T) (*Store, BuildConfig) {
	t.Helper()
	src := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(src, name)
		if err := os.WriteFile(path, data, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var dep strings.Builder
	var files []string
	for _, m := range bootModules() {
		dep.WriteString("kernel/" + m + ".ko:\n")
		files = append(files, "kernel/"+m+".ko")
	}
	b := BuildConfig{
		Name:    "test",
		Agent:   write("agent", tinyELF(t, "GNU\x00", 1)),
		Kernel:  write("vmlinuz-9.9.9-cloud-amd64", tinyBzImage(t, tinyELF(t, "Xen\x00", 18))),
		Modules: modulesDir(t, dep.String(), "", files...),
	}
	s := &Store{Dir: filepath.Join(t.TempDir(), "images")}
	dir := filepath.Join(s.Dir, b.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "root-cafe.ext4")
	if err := os.WriteFile(root, []byte("a root"), 0o644); err != nil {
		t.Fatal(err)
	}
	file, err := hashFile(t.Context(), root, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	m := Manifest{Format: manifestFormat, Root: Root{File: file, Recipe: b.recipe(), Suite: suite, Nodes: nodePackages()}}
	m.Kernel.File.Name, m.Initrd.File.Name = "none", "none"
	if err := m.write(dir); err != nil {
		t.Fatal(err)
	}
	return s, b
}

func build(t *testing.T, s *Store, b BuildConfig) *Image {
	t.Helper()
	im, err := s.Build(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Close() })
	return im
}

func TestBuildIsCached(t *testing.T) {
	s, b := fixture(t)
	first := build(t, s, b)
	if first.Release != "9.9.9-cloud-amd64" {
		t.Errorf("release %q", first.Release)
	}
	before, err := os.Stat(first.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	second := build(t, s, b)
	after, err := os.Stat(second.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) || first.Initrd != second.Initrd || first.Root != second.Root {
		t.Error("the same input was built twice")
	}
	if err := s.Verify(t.Context(), b.Name, nil); err != nil {
		t.Error(err)
	}
}

func TestNewAgentNewInitramfs(t *testing.T) {
	s, b := fixture(t)
	held := build(t, s, b)
	os.WriteFile(b.Agent, append(tinyELF(t, "GNU\x00", 1), "newer"...), 0o755)
	newer := build(t, s, b)
	if newer.Initrd == held.Initrd || newer.Kernel != held.Kernel {
		t.Errorf("initramfs %s, kernel %s: want a new one and the old one", newer.Initrd, newer.Kernel)
	}
	if _, err := os.Stat(held.Initrd); err != nil {
		t.Errorf("the initramfs of an open image was pruned: %v", err)
	}
	held.Close()
	build(t, s, b)
	if _, err := os.Stat(held.Initrd); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the initramfs that nobody holds was not pruned: %v", err)
	}
}

func TestBuildErrors(t *testing.T) {
	_, good := fixture(t)
	script := filepath.Join(t.TempDir(), "agent")
	os.WriteFile(script, []byte("#!/bin/sh"), 0o755)
	for name, tc := range map[string]struct {
		change func(b *BuildConfig)
		want   string
	}{
		"no agent":      {func(b *BuildConfig) { b.Agent = "" }, "BuildConfig.Agent"},
		"missing agent": {func(b *BuildConfig) { b.Agent = "/nonexistent" }, "the agent: stat /nonexistent"},
		"folder agent":  {func(b *BuildConfig) { b.Agent = "/" }, "not a program"},
		"script agent":  {func(b *BuildConfig) { b.Agent = script }, "not an ELF program"},
		"no kernel":     {func(b *BuildConfig) { b.Kernel = "/nonexistent" }, "/nonexistent"},
		"not a kernel":  {func(b *BuildConfig) { b.Kernel = script }, "no setup header"},
		"no modules":    {func(b *BuildConfig) { b.Modules = "/nonexistent" }, "modules.dep"},
		"bad name":      {func(b *BuildConfig) { b.Name = "../x" }, "is not a name"},
	} {
		s, b := fixture(t)
		b.Kernel, b.Modules, b.Agent = good.Kernel, good.Modules, good.Agent
		tc.change(&b)
		if _, err := s.Build(t.Context(), b); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, tc.want)
		}
		if left, _ := filepath.Glob(filepath.Join(s.Dir, "test", "*"+tmpSuffix)); len(left) > 0 {
			t.Errorf("%s: left behind: %v", name, left)
		}
	}
}

func TestOpenDamaged(t *testing.T) {
	for name, tc := range map[string]struct {
		damage func(im *Image) error
		want   string
	}{
		"truncated": {func(im *Image) error { return os.Truncate(im.Root, 3) }, "the manifest says 6"},
		"touched":   {func(im *Image) error { return os.Chtimes(im.Kernel, time.Time{}, time.Unix(1, 0)) }, "was changed at"},
		"missing":   {func(im *Image) error { return os.Remove(im.Initrd) }, "no such file"},
		"manifest": {func(im *Image) error {
			return os.WriteFile(filepath.Join(filepath.Dir(im.Root), manifestName), []byte("{"), 0o644)
		}, "unexpected end of JSON"},
		"format": {func(im *Image) error {
			return os.WriteFile(filepath.Join(filepath.Dir(im.Root), manifestName), []byte(`{"format":7}`), 0o644)
		}, "not built"},
		"escape": {func(im *Image) error {
			m := im.Manifest
			m.Root.File.Name = "../../etc/passwd"
			return m.write(filepath.Dir(im.Root))
		}, "not a file name"},
	} {
		t.Run(name, func(t *testing.T) {
			s, b := fixture(t)
			im := build(t, s, b)
			if err := tc.damage(im); err != nil {
				t.Fatal(err)
			}
			im, err := s.Open(t.Context(), b.Name)
			if err == nil {
				im.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
			list, err := s.List(t.Context())
			if err != nil || len(list) != 1 || list[0].Problem == "" {
				t.Errorf("list: %+v, %v: want one image with a problem", list, err)
			}
		})
	}
}

func TestVerifyFindsWhatOpenMisses(t *testing.T) {
	s, b := fixture(t)
	im := build(t, s, b)
	fi, err := os.Stat(im.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	data, _ := os.ReadFile(im.Kernel)
	data[len(data)-1] ^= 1
	if err := errors.Join(os.WriteFile(im.Kernel, data, 0o644), os.Chtimes(im.Kernel, fi.ModTime(), fi.ModTime())); err != nil {
		t.Fatal(err)
	}
	if again, err := s.Open(t.Context(), b.Name); err != nil {
		t.Error(err)
	} else {
		again.Close()
	}
	if err := s.Verify(t.Context(), b.Name, nil); err == nil || !strings.Contains(err.Error(), "SHA-256") {
		t.Errorf("got %v, want an error about the hash", err)
	}
}

func TestListAndRemove(t *testing.T) {
	s, b := fixture(t)
	build(t, s, b)
	list, err := s.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Name != "test" || list[0].Problem != "" || list[0].Bytes == 0 {
		t.Fatalf("list: %+v, %v", list, err)
	}
	if err := s.Remove(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(t.Context(), "test"); !errors.Is(err, ErrNotBuilt) {
		t.Errorf("after removal: %v, want ErrNotBuilt", err)
	}
	if err := s.Remove(t.Context(), "test"); !errors.Is(err, ErrNotBuilt) {
		t.Errorf("second removal: %v, want ErrNotBuilt", err)
	}
	if err := s.Remove(t.Context(), "../images"); err == nil {
		t.Error("a name left the store")
	}
	if list, err := (&Store{Dir: filepath.Join(s.Dir, "none")}).List(t.Context()); err != nil || list != nil {
		t.Errorf("a store that was never used: %v, %v", list, err)
	}
}

func TestTwoBuildsAtOnce(t *testing.T) {
	s, b := fixture(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			im, err := (&Store{Dir: s.Dir}).Build(context.Background(), b)
			if err != nil {
				t.Error(err)
				return
			}
			im.Close()
		})
	}
	wg.Wait()
}

func TestLockObeysContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := vm.LockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	if _, err := vm.LockFile(ctx, path); err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("got %v, want the context's cause", err)
	}
	unlock()
	unlock, err = vm.LockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestOverlay(t *testing.T) {
	s, b := fixture(t)
	im := build(t, s, b)
	dst := filepath.Join(t.TempDir(), "disk")
	const size = 4<<30 - 5
	if err := im.CloneOverlay(t.Context(), dst, size); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(dst)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := vm.Allocated(dst); fi.Size() != 4<<30 || n > 4<<20 || err != nil {
		t.Errorf("%d bytes, %d on disk, %v: want 4 GiB, sparse", fi.Size(), n, err)
	}
	if out, err := exec.Command("/usr/sbin/e2fsck", "-fn", dst).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	if err := im.CloneOverlay(t.Context(), dst, size); !errors.Is(err, os.ErrExist) {
		t.Errorf("over a file that exists: %v, want ErrExist", err)
	}
	for _, size := range []int64{0, -1, MinOverlay - 1, MaxOverlay + 1} {
		if _, err := im.OverlayTemplate(t.Context(), size); err == nil {
			t.Errorf("a disk of %d bytes was made", size)
		}
	}
}

func TestSteps(t *testing.T) {
	var got []string
	s := &steps{progress: func(step string, done, total int64) { got = append(got, step) }}
	for _, chunk := range []string{"I: running ap", "t-get update...\nE: bad\nI: running hook: sh -c 'rm -rf'\n", strings.Repeat("x", 3*maxTail)} {
		if n, err := s.Write([]byte(chunk)); n != len(chunk) || err != nil {
			t.Fatal(n, err)
		}
	}
	if diff := cmp.Diff([]string{"running apt-get update", "running hook"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(s.tail) != maxTail || len(s.line) != maxTail {
		t.Errorf("kept %d and %d bytes, want %d", len(s.tail), len(s.line), maxTail)
	}
}

func TestParseStatus(t *testing.T) {
	const config = "\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n"
	got, err := parseStatus("Package: zsh\nStatus: install ok installed\nVersion: 1\nDescription: a shell\n Version: not this\n\n" +
		"Package: bash\nVersion: 5.2~rc1-2\nStatus: install ok installed" + config)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Package{{"bash", "5.2~rc1-2"}, {"zsh", "1"}}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, s := range []string{"", "Package: bash\nVersion: 1", "Package: bash\nStatus: install ok installed", config} {
		if _, err := parseStatus(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}

// dpkg's list in an image of somebody else's is as hostile as the image.
func FuzzParseStatus(f *testing.F) {
	f.Add("Package: zsh\nStatus: install ok installed\nVersion: 1\n\nPackage: b\nStatus: deinstall ok config-files\n")
	f.Add("Status: x installed\n\n\n\n: \n")
	f.Fuzz(func(t *testing.T, s string) {
		packages, err := parseStatus(s)
		if err == nil && len(packages) == 0 {
			t.Fatal("no package, and no error")
		}
		for i, p := range packages {
			if p.Name == "" || p.Version == "" || strings.ContainsAny(p.Name+p.Version, "\n") || i > 0 && packages[i-1].Name > p.Name {
				t.Fatalf("package %d is %+v", i, p)
			}
		}
	})
}
