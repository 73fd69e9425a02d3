package vm_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/terraphim/tgr/vm"
)

// sparseFile writes pieces at their places, and a hole up to size.
func sparseFile(t *testing.T, size int64, pieces map[int64]string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sparse")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for at, s := range pieces {
		if _, err := f.WriteAt([]byte(s), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCopySparse(t *testing.T) {
	for name, c := range map[string]struct {
		size   int64
		pieces map[int64]string
	}{
		"empty":               {},
		"a hole":              {size: 32 << 20},
		"data at both ends":   {64 << 20, map[int64]string{5: "begin", 7<<20 + 1: "middle", 64<<20 - 3: "end"}},
		"a hole at the end":   {64 << 20, map[int64]string{0: "start", 5 << 20: "middle"}},
		"a piece over chunks": {8 << 20, map[int64]string{1<<20 - 7: string(bytes.Repeat([]byte("0123456789"), 300<<10))}},
	} {
		t.Run(name, func(t *testing.T) {
			src, dst := sparseFile(t, c.size, c.pieces), filepath.Join(t.TempDir(), "copy")
			if err := vm.CopySparse(t.Context(), dst, src); err != nil {
				t.Fatal(err)
			}
			want, err1 := os.ReadFile(src)
			got, err2 := os.ReadFile(dst)
			if err1 != nil || err2 != nil || !bytes.Equal(want, got) {
				t.Errorf("%d bytes became %d: %v %v", len(want), len(got), err1, err2)
			}
			was, _ := vm.Allocated(src)
			if n, err := vm.Allocated(dst); err != nil || n > was+64<<10 {
				t.Errorf("the copy takes %d bytes of the disk, the file %d: %v", n, was, err)
			}
		})
	}
}

func TestCopySparseFails(t *testing.T) {
	src := sparseFile(t, 4<<20, map[int64]string{1 << 20: "data"})
	dst := filepath.Join(t.TempDir(), "copy")
	if err := os.WriteFile(dst, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := vm.CopySparse(t.Context(), dst, src); !errors.Is(err, os.ErrExist) {
		t.Errorf("onto a file: %v", err)
	}
	if b, err := os.ReadFile(dst); string(b) != "mine" {
		t.Errorf("the file that was there holds %q, %v", b, err)
	}
	if err := vm.CopySparse(t.Context(), dst+"2", src+"-gone"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of no file: %v", err)
	}
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	// Where the file system copies by reference there is nothing to be cut short.
	if err := vm.CopySparse(ctx, dst+"3", src); err != nil {
		if !errors.Is(err, why) {
			t.Errorf("with a context that has ended: %v", err)
		}
		if _, err := os.Stat(dst + "3"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("half a copy was left: %v", err)
		}
	}
}

// What a copy does not bring stays: a snapshot's pages are laid over what is there.
func TestCopyData(t *testing.T) {
	src, err := os.Open(sparseFile(t, 2<<20, map[int64]string{1 << 20: "new"}))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.OpenFile(sparseFile(t, 2<<20, map[int64]string{0: "old", 1 << 20: "lost"}), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if err := vm.CopyData(t.Context(), dst, src); err != nil {
		t.Fatal(err)
	}
	for at, want := range map[int64]string{0: "old", 1 << 20: "new\x00"} {
		got := make([]byte, len(want))
		if _, err := dst.ReadAt(got, at); err != nil || string(got) != want {
			t.Errorf("at %d: %q, %v; want %q", at, got, err, want)
		}
	}
}

func TestAllocated(t *testing.T) {
	dir := t.TempDir()
	if n, err := vm.Allocated(dir); n != 0 || err != nil {
		t.Errorf("an empty folder: %d, %v", n, err)
	}
	if n, err := vm.Allocated(filepath.Join(dir, "none")); n != 0 || err != nil {
		t.Errorf("no folder: %d, %v", n, err)
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "sub/b"} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 64<<10), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if n, err := vm.Allocated(dir); n < 128<<10 || n > 160<<10 || err != nil {
		t.Errorf("two files of 64 KiB take %d bytes, %v", n, err)
	}
}
