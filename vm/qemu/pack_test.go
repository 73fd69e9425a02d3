package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr/vm"
)

func tempFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestPack(t *testing.T) {
	type extent struct {
		at int64
		b  []byte
	}
	for name, tt := range map[string]struct {
		size    int64
		extents []extent
		most    int // bytes packed
	}{
		"empty":     {0, nil, packHead},
		"hole":      {1 << 40, nil, packHead},
		"zeros":     {1 << 20, []extent{{0, make([]byte, 1<<20)}}, packHead},
		"all":       {3 << 20, []extent{{0, bytes.Repeat([]byte{1}, 3<<20)}}, 3<<20 + 4*packHead},
		"odd end":   {5*pageSize + 17, []extent{{5 * pageSize, []byte("the last bytes...")}}, pageSize + 2*packHead},
		"sparse":    {1 << 40, []extent{{4096, []byte("a")}, {1 << 39, []byte("b")}, {1<<40 - 1, []byte("c")}}, 3*pageSize + 4*packHead},
		"alternate": {4 * pageSize, []extent{{0, []byte("a")}, {2 * pageSize, []byte("c")}}, 2*pageSize + 3*packHead},
	} {
		t.Run(name, func(t *testing.T) {
			in, out := tempFile(t), tempFile(t)
			if err := in.Truncate(tt.size); err != nil {
				t.Skip(err) // a file system that has no such files
			}
			for _, e := range tt.extents {
				if _, err := in.WriteAt(e.b, e.at); err != nil {
					t.Fatal(err)
				}
			}
			var packed bytes.Buffer
			if err := pack(t.Context(), &packed, in); err != nil {
				t.Fatal(err)
			}
			if packed.Len() > tt.most {
				t.Errorf("packed into %d bytes, want at most %d", packed.Len(), tt.most)
			}
			if err := unpack(out, bytes.NewReader(packed.Bytes()), tt.size); err != nil {
				t.Fatal(err)
			}
			if fi, err := out.Stat(); err != nil || fi.Size() != tt.size {
				t.Errorf("%d bytes, want %d", fi.Size(), tt.size)
			}
			for _, e := range tt.extents {
				got := make([]byte, len(e.b))
				if _, err := out.ReadAt(got, e.at); err != nil || !bytes.Equal(got, e.b) {
					t.Errorf("at %d: %v", e.at, err)
				}
			}
			var again bytes.Buffer
			if err := pack(t.Context(), &again, out); err != nil || !bytes.Equal(again.Bytes(), packed.Bytes()) {
				t.Errorf("packed again it is different: %v", err)
			}
		})
	}
}

func TestUnpackRefuses(t *testing.T) {
	record := func(at uint64, n int) []byte {
		var b bytes.Buffer
		packRecord(&b, int64(at), bytes.Repeat([]byte{1}, n))
		return b.Bytes()
	}
	for name, packed := range map[string][]byte{
		"nothing":        nil,
		"half a head":    record(0, 0)[:7],
		"half a record":  record(0, 100)[:50],
		"no end":         record(0, 100),
		"backwards":      append(record(100, 10), record(50, 10)...),
		"beyond":         record(1<<20, 10),
		"negative":       record(1<<63, 0),
		"overflow":       {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 16},
		"large record":   {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff},
		"more at an end": append(record(100, 0), 1),
	} {
		if err := unpack(tempFile(t), bytes.NewReader(packed), 1<<20); !errors.Is(err, errPacked) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzUnpack: nothing that is unpacked is longer than it may be, or differs from what packing it says.
func FuzzUnpack(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 'x', 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		out := tempFile(t)
		err := unpack(out, bytes.NewReader(b), 1<<16)
		if fi, serr := out.Stat(); serr != nil || fi.Size() > 1<<16 {
			t.Fatalf("%d bytes", fi.Size())
		}
		if err != nil {
			return
		}
		var packed bytes.Buffer
		if err := pack(t.Context(), &packed, out); err != nil {
			t.Fatal(err)
		}
		again := tempFile(t)
		if err := unpack(again, &packed, 1<<16); err != nil {
			t.Fatal(err)
		}
		one, err1 := os.ReadFile(out.Name())
		two, err2 := os.ReadFile(again.Name())
		if err1 != nil || err2 != nil || !bytes.Equal(one, two) {
			t.Error("packing and unpacking makes another file")
		}
	})
}

// TestSealed: what clones share cannot be changed by one of them.
func TestSealed(t *testing.T) {
	f, err := sealedFile(func(f *os.File) error { _, err := f.WriteString("golden"); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	again, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for _, f := range []*os.File{f, again} {
		if _, err := f.WriteAt([]byte("x"), 0); err == nil {
			t.Error("a snapshot was written to")
		}
		if f.Truncate(0) == nil || f.Truncate(100) == nil {
			t.Error("a snapshot was truncated")
		}
	}
	r, err := reopen(f)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b := make([]byte, 10)
	if n, _ := r.Read(b); string(b[:n]) != "golden" {
		t.Errorf("%q", b[:n])
	}
}

func TestPrune(t *testing.T) {
	root := t.TempDir()
	now := time.Now()
	for i := range 6 {
		dir := filepath.Join(root, fmt.Sprint("key", i))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, goldenManifest)
		if err := os.WriteFile(path, nil, 0o400); err != nil {
			t.Fatal(err)
		}
		used := now.Add(-time.Duration(i) * time.Hour)
		if err := os.Chtimes(path, used, used); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(filepath.Join(root, goldenTmp+"1"), 0o700), os.WriteFile(filepath.Join(root, goldenLock), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := prune(root, "key1"); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if diff := cmp.Diff([]string{"key0", "key2", "key3", goldenLock}, left); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLockFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := vm.LockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	why := errors.New("enough")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, why)
	defer cancel()
	if _, err := vm.LockFile(ctx, path); !errors.Is(err, why) || !strings.Contains(err.Error(), path) {
		t.Errorf("locked twice: %v", err)
	}
	unlock()
	unlock, err = vm.LockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

// TestLoadGolden loads a snapshot, and refuses whatever is not the one that was made.
func TestLoadGolden(t *testing.T) {
	key := goldenKey{Format: goldenFormat, Image: "i"}
	newGolden := func(t *testing.T) string {
		dir := t.TempDir()
		man := manifest{Key: key, Files: map[string]goldenFile{}}
		memory := tempFile(t)
		if err := memory.Truncate(1 << 20); err != nil {
			t.Fatal(err)
		}
		memory.WriteAt([]byte("memory"), 8192)
		err := errors.Join(
			man.write(dir, goldenMemory, func(w io.Writer) error { return pack(t.Context(), w, memory) }),
			man.write(dir, goldenState, func(w io.Writer) error { _, err := io.WriteString(w, "state"); return err }),
			man.write(dir, goldenDisk, func(w io.Writer) error { return pack(t.Context(), w, memory) }),
			man.save(dir),
		)
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	g, err := loadGolden(t.Context(), newGolden(t), key.hash())
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	b := [6]byte{}
	if fi, err := g.memory.Stat(); err != nil || fi.Size() != 1<<20 {
		t.Errorf("memory: %v, %v", fi, err)
	}
	if _, err := g.memory.ReadAt(b[:], 8192); err != nil || string(b[:]) != "memory" {
		t.Errorf("memory: %q, %v", b, err)
	}
	if _, err := g.state.ReadAt(b[:5], 0); err != nil || string(b[:5]) != "state" || len(g.disk) == 0 {
		t.Errorf("state: %q, %v; a disk of %d bytes", b, err, len(g.disk))
	}
	if _, err := loadGolden(t.Context(), newGolden(t), "another"); err == nil || !strings.Contains(err.Error(), "of another") {
		t.Errorf("another key: %v", err)
	}
	if _, err := loadGolden(t.Context(), t.TempDir(), key.hash()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no snapshot: %v", err)
	}
	for _, name := range []string{goldenManifest, goldenMemory, goldenState, goldenDisk} {
		for how, change := range map[string]func([]byte) []byte{
			"missing": nil,
			"empty":   func([]byte) []byte { return nil },
			"shorter": func(b []byte) []byte { return b[:len(b)-1] },
			"longer":  func(b []byte) []byte { return append(b, 0) },
			"changed": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		} {
			if name == goldenManifest && (how == "missing" || how == "longer" || how == "changed") {
				continue // there is none; JSON with something behind it; nothing vouches for the manifest
			}
			dir := newGolden(t)
			path := filepath.Join(dir, name)
			b, err := os.ReadFile(path)
			if err = errors.Join(err, os.Remove(path)); err == nil && change != nil {
				err = os.WriteFile(path, change(b), 0o400)
			}
			if err != nil {
				t.Fatal(err)
			}
			if g, err := loadGolden(t.Context(), dir, key.hash()); err == nil || errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s %s: %v, %v", name, how, g, err)
			}
		}
	}
}
