package guest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// archive makes a tar of empty files, folders (with a slash) and links (name>target).
func archive(t testing.TB, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, n := range names {
		h := &tar.Header{Name: n, Mode: 0o755, Typeflag: tar.TypeReg}
		if name, target, ok := strings.Cut(n, ">"); ok {
			h.Name, h.Linkname, h.Typeflag = name, target, tar.TypeSymlink
		} else if strings.HasSuffix(n, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// tree lists a folder: names, folders with a slash, links with their target.
func tree(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, p)
		if err != nil || rel == "." {
			return err
		}
		b.WriteString(rel)
		switch {
		case d.IsDir():
			b.WriteString("/")
		case d.Type() == fs.ModeSymlink:
			target, _ := os.Readlink(p)
			b.WriteString(">" + target)
		}
		b.WriteString(" ")
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return strings.TrimSpace(b.String())
}

// What is there gives way, but for folders that are not empty.
func TestUnpackOver(t *testing.T) {
	for _, tt := range []struct {
		name        string
		there, sent []string
		want        string
		fails       bool
	}{
		{"file over file", []string{"a"}, []string{"a"}, "a", false},
		{"file over link", []string{"b", "a>b"}, []string{"a"}, "a b", false},
		{"file over empty folder", []string{"a/"}, []string{"a"}, "a", false},
		{"file over folder", []string{"a/b"}, []string{"a"}, "a/ a/b", true},
		{"folder over file", []string{"a"}, []string{"a/"}, "a/", false},
		{"folder over folder", []string{"a/b"}, []string{"a/", "a/c"}, "a/ a/b a/c", false},
		{"folder over link", []string{"b/", "a>b"}, []string{"a/", "a/c"}, "a/ a/c b/", false},
		{"link over file", []string{"a"}, []string{"a>b"}, "a>b", false},
		{"through a link inside", []string{"b/", "a>b"}, []string{"a/c"}, "a>b b/ b/c", false},
		{"folders on the way", nil, []string{"a/b/c/d"}, "a/ a/b/ a/b/c/ a/b/c/d", false},
		{"file on the way", []string{"a"}, []string{"a/b"}, "a", true},
		{"through a link to nowhere", nil, []string{"a>b", "a/c/d"}, "a>b", true},
		{"dots", nil, []string{"./a/./b", "./"}, "a/ a/b", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := unpack(dir, bytes.NewReader(archive(t, tt.there...))); err != nil {
				t.Fatal(err)
			}
			err := unpack(dir, bytes.NewReader(archive(t, tt.sent...)))
			if (err != nil) != tt.fails {
				t.Errorf("error %v", err)
			}
			if got := tree(t, dir); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// A sparse file of a terabyte takes a kilobyte of tar, and would fill the disk.
func TestUnpackSparse(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	h := &tar.Header{Name: "x", Mode: 0o644, Size: 512, Typeflag: tar.TypeReg, PAXRecords: map[string]string{
		"XNU.sparse.major": "1", "XNU.sparse.minor": "0", "XNU.sparse.name": "x", "XNU.sparse.realsize": "1000000000000",
	}}
	if err := w.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	w.Write(append([]byte("0\n"), make([]byte, 510)...)) // the map: all of it is a hole
	w.Close()
	// The writer would not write such keys.
	text := bytes.ReplaceAll(b.Bytes(), []byte("XNU.sparse"), []byte("GNU.sparse"))
	if err := unpack(t.TempDir(), bytes.NewReader(text)); !errors.Is(err, ErrRefused) {
		t.Errorf("got %v, want ErrRefused", err)
	}
}

// What the agent makes as root belongs to the owner of the folder that it is made in.
func TestUnpackOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	if err := os.Chown(dir, 4321, 4322); err != nil {
		t.Fatal(err)
	}
	if err := unpack(filepath.Join(dir, "made"), bytes.NewReader(archive(t, "a/b/c", "d/", "l>c"))); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != 4321 || st.Gid != 4322 {
			t.Errorf("%s belongs to %d:%d", p, st.Uid, st.Gid)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A reader that fails is the caller's affair, and no ErrLost.
func TestPutSourceFails(t *testing.T) {
	c := agent(t, ServerConfig{})
	broken := errors.New("cannot read")
	err := c.Put(context.Background(), t.TempDir(), io.MultiReader(strings.NewReader("x"), failing{broken}))
	if !errors.Is(err, broken) || errors.Is(err, ErrLost) {
		t.Errorf("got %v", err)
	}
	// A large tar that is refused early says why.
	big := append(archive(t, "../x"), make([]byte, 8<<20)...)
	if err := c.Put(context.Background(), t.TempDir(), bytes.NewReader(big)); !errors.Is(err, ErrRefused) {
		t.Errorf("got %v, want ErrRefused", err)
	}
	if err := c.Put(context.Background(), "/proc/nonesuch", bytes.NewReader(archive(t))); err == nil {
		t.Error("made a folder in /proc")
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// Get of a large tree that is given up half way harms nothing.
func TestGetGivenUp(t *testing.T) {
	c := agent(t, ServerConfig{})
	name := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(name, make([]byte, 16<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		r, err := c.Get(context.Background(), name)
		if err != nil {
			t.Fatal(err)
		}
		io.CopyN(io.Discard, r, 1000)
		r.Close()
		r.Close()
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("read after close: %v", err)
		}
	}
	why := errors.New("why")
	ctx, cancel := context.WithCancelCause(context.Background())
	r, err := c.Get(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cancel(why)
	if _, err := io.ReadAll(r); !errors.Is(err, why) {
		t.Errorf("got %v, want the cause", err)
	}
	if exit, err := c.Exec(context.Background(), sh("exit 3"), nil); err != nil || exit.Code != 3 {
		t.Errorf("%+v, %v", exit, err)
	}
}

// FuzzUnpack: whatever the tar, nothing beside the folder changes.
func FuzzUnpack(f *testing.F) {
	f.Add(archive(f, "a", "b/c", "l>../outside", "l/x"))
	f.Add(archive(f, "../outside/x", "/etc/x"))
	f.Add(archive(f, "a>b", "b>../outside", "a/x/"))
	f.Add(archive(f, ".>x", "./", "./."))
	f.Fuzz(func(t *testing.T, b []byte) {
		base := t.TempDir()
		outside, dir := filepath.Join(base, "outside"), filepath.Join(base, "in")
		if err := os.Mkdir(outside, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(outside, "file"), []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		unpack(dir, bytes.NewReader(b))
		if got := tree(t, outside); got != "file" {
			t.Errorf("outside there is %q", got)
		}
		if text, err := os.ReadFile(filepath.Join(outside, "file")); string(text) != "precious" {
			t.Errorf("the file is %q, %v", text, err)
		}
		if info, err := os.Stat(outside); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("the folder is %v, %v", info, err)
		}
		if list, err := os.ReadDir(base); err != nil || len(list) > 2 {
			t.Errorf("beside the folder: %v, %v", list, err)
		}
		os.Chmod(dir, 0o700)
		filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if d != nil && d.IsDir() {
				os.Chmod(p, 0o700)
			}
			return nil
		})
	})
}

// TestLinkTime keeps the time of a symbolic link, and leaves what it leads to alone.
func TestLinkTime(t *testing.T) {
	when, before := time.Unix(1_500_000_000, 123_456_000), time.Unix(1_400_000_000, 0)
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(target, before, before); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range []string{"link", "a/b/link"} {
		h := &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, ModTime: when, Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unpack(dir, &b); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link", "a/b/link"} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || !info.ModTime().Equal(when) {
			t.Errorf("%s: %v, %v, want %v", name, info.ModTime(), err, when)
		}
	}
	if info, err := os.Stat(target); err != nil || !info.ModTime().Equal(before) {
		t.Errorf("the target: %v, %v, want %v", info.ModTime(), err, before)
	}
}
