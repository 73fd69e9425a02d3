package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// layerOf makes a layer. Each entry is a line: "d NAME", "f NAME TEXT", "l NAME TARGET" (symbolic), "h NAME TARGET" (hard),
// "c NAME" (a device), "p NAME" (a pipe). A name of "" is written as it is.
func layerOf(t testing.TB, entries ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		kind, rest, _ := strings.Cut(e, " ")
		name, arg, _ := strings.Cut(rest, " ")
		h := &tar.Header{Name: name, Mode: 0o644, ModTime: time.Unix(1000, 0)}
		switch kind {
		case "d":
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		case "f":
			h.Typeflag, h.Size = tar.TypeReg, int64(len(arg))
		case "l":
			h.Typeflag, h.Linkname = tar.TypeSymlink, arg
		case "h":
			h.Typeflag, h.Linkname = tar.TypeLink, arg
		case "c":
			h.Typeflag = tar.TypeChar
		case "p":
			h.Typeflag = tar.TypeFifo
		default:
			t.Fatalf("entry %q", e)
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if kind == "f" {
			io.WriteString(w, arg)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func treeFor(t testing.TB) *tree {
	t.Helper()
	tr, err := newTree(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.close() })
	return tr
}

// listing is what a tree writes: the same notation as layerOf's, without what is not of interest.
func listing(t testing.TB, tr *tree) []string {
	t.Helper()
	var b bytes.Buffer
	if err := tr.write(&b); err != nil {
		t.Fatal(err)
	}
	var out []string
	r := tar.NewReader(&b)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(h.Name, "/")
		switch h.Typeflag {
		case tar.TypeDir:
			out = append(out, "d "+name)
		case tar.TypeReg:
			text, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, "f "+name+" "+string(text))
		case tar.TypeSymlink:
			out = append(out, "l "+name+" "+h.Linkname)
		case tar.TypeLink:
			out = append(out, "h "+name+" "+h.Linkname)
		case tar.TypeFifo:
			out = append(out, "p "+name)
		default:
			t.Fatalf("wrote an entry of type %q", h.Typeflag)
		}
	}
}

func TestTree(t *testing.T) {
	type layers = [][]string
	for name, c := range map[string]struct {
		layers layers
		want   []string
	}{
		"later wins":                    {layers{{"f a 1", "f b 1"}, {"f b 2"}}, []string{"f a 1", "f b 2"}},
		"folders are made":              {layers{{"f a/b/c 1"}}, []string{"d a", "d a/b", "f a/b/c 1"}},
		"leading slash and dots":        {layers{{"d ./", "f /a 1", "f ./b//./c 1"}}, []string{"f a 1", "d b", "f b/c 1"}},
		"whiteout":                      {layers{{"f d/a 1", "f d/b 1"}, {"f d/.wh.a "}}, []string{"d d", "f d/b 1"}},
		"whiteout of a folder":          {layers{{"f d/e/a 1", "f x 1"}, {"f .wh.d "}}, []string{"f x 1"}},
		"whiteout, then anew":           {layers{{"f d/a 1"}, {"f .wh.d ", "f d/b 2"}}, []string{"d d", "f d/b 2"}},
		"anew, then whiteout":           {layers{{"f d/a 1"}, {"f d/b 2", "f .wh.d "}}, []string{"d d", "f d/b 2"}},
		"whiteout of nothing":           {layers{{"f a 1"}, {"f .wh.b ", "f no/.wh.c "}}, []string{"f a 1"}},
		"whiteout in the same layer":    {layers{{"f a 1", "f .wh.a "}}, []string{"f a 1"}},
		"opaque":                        {layers{{"f d/a 1", "f d/e/f 1"}, {"f d/.wh..wh..opq ", "f d/b 2"}}, []string{"d d", "f d/b 2"}},
		"opaque, last":                  {layers{{"f d/a 1", "f d/e/f 1"}, {"f d/b 2", "f d/e/g 2", "f d/.wh..wh..opq "}}, []string{"d d", "f d/b 2", "d d/e", "f d/e/g 2"}},
		"opaque root":                   {layers{{"f a 1", "f b/c 1"}, {"f .wh..wh..opq ", "f d 2"}}, []string{"f d 2"}},
		"other marks of aufs":           {layers{{"f plnk 1"}, {"f .wh..wh.plnk "}}, []string{"f plnk 1"}},
		"hard link":                     {layers{{"f a 1", "h b a"}}, []string{"f a 1", "h b a"}},
		"hard link, first name removed": {layers{{"f a 1", "h b a"}, {"f .wh.a "}}, []string{"f b 1"}},
		"hard link to a lower layer":    {layers{{"f a 1"}, {"h b /a"}, {"f .wh.a "}}, []string{"f b 1"}},
		"hard link and whiteout":        {layers{{"f a 1"}, {"h b a", "f .wh.a "}}, []string{"f b 1"}},
		"hard link, one replaced":       {layers{{"f a 1", "h b a"}, {"f a 2"}}, []string{"f a 2", "f b 1"}},
		"hard link to a symbolic one":   {layers{{"l a x", "h b a"}}, []string{"l a x", "h b a"}},
		"folder over file":              {layers{{"f a 1"}, {"d a"}}, []string{"d a"}},
		"file over folder":              {layers{{"f a/b 1"}, {"f a 2"}}, []string{"f a 2"}},
		"folder over link":              {layers{{"d b", "l a b"}, {"d a"}}, []string{"d a", "d b"}},
		"through a link":                {layers{{"d usr/lib", "l lib usr/lib"}, {"f lib/x 1"}}, []string{"l lib usr/lib", "d usr", "d usr/lib", "f usr/lib/x 1"}},
		"through an absolute link":      {layers{{"d usr/lib", "l lib /usr/lib", "f lib/x 1"}}, []string{"l lib /usr/lib", "d usr", "d usr/lib", "f usr/lib/x 1"}},
		"a link out of the root":        {layers{{"l up ../../../etc", "f up/passwd 1"}}, []string{"d etc", "f etc/passwd 1", "l up ../../../etc"}},
		"whiteout through a link":       {layers{{"f usr/lib/x 1", "l lib usr/lib"}, {"f lib/.wh.x "}}, []string{"l lib usr/lib", "d usr", "d usr/lib"}},
		"devices are left out":          {layers{{"f null 1"}, {"c null", "c dev/sda", "p pipe"}}, []string{"d dev", "p pipe"}},
	} {
		t.Run(name, func(t *testing.T) {
			tr := treeFor(t)
			for _, l := range c.layers {
				if err := tr.apply(bytes.NewReader(layerOf(t, l...))); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(c.want, listing(t, tr)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestTreeRefuses(t *testing.T) {
	long := strings.Repeat("n", 256)
	for _, c := range []struct {
		layer []string
		want  string
	}{
		{[]string{"f ../etc/passwd 1"}, "leaves the root"},
		{[]string{"f a/../../b 1"}, "leaves the root"},
		{[]string{"d a", "h b ../../etc/shadow"}, "leaves the root"},
		{[]string{"h b a"}, "which is no file"},
		{[]string{"d a", "h b a"}, "which is no file"},
		{[]string{"h b no/a"}, "no such folder"},
		{[]string{"h b /"}, "a link to the root"},
		{[]string{"f a 1", "f a/b 1"}, "its folder is a file"},
		{[]string{"l a b", "l b a", "f a/x 1"}, "too many levels"},
		{[]string{"l a a/a", "f a/x 1"}, "too many levels"},
		{[]string{"f " + long + " 1"}, "no file name"},
		{[]string{"f " + strings.Repeat("d/", 200) + "x 1"}, "nested more than"},
		{[]string{"l a " + strings.Repeat("d/", 200), "f a/b 1"}, "nested more than"},
		{[]string{"f . 1"}, "the root is not a folder"},
		{[]string{"f a 0123456789", "f b 0123456789", "f c 0123456789"}, "larger than 25 bytes"},
		{[]string{"f 1 ", "f 2 ", "f 3 ", "f 4 ", "f 5 ", "f 6 "}, "more than 5 files"},
		{[]string{"f a/b/c/d/e/f 1"}, "more than 5 files"},
	} {
		tr := treeFor(t)
		tr.limits.bytes = 25
		if !strings.Contains(c.want, "nested") {
			tr.limits.files = 5
		}
		err := tr.apply(bytes.NewReader(layerOf(t, c.layer...)))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60q: %v, want an error with %q", c.layer, err, c.want)
		}
	}
}

// TestTreeMetadata holds what is kept of a file, and what is not.
func TestTreeMetadata(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o104755, Uid: 7, Gid: 1 << 20, ModTime: time.Unix(2000, 5), Format: tar.FormatPAX,
		Uname: "mallory", PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "cap", "SCHILY.xattr.user.a": "b",
			"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.overlay.redirect": "/etc", "SCHILY.xattr.security.selinux": "x"}})
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "new", ModTime: time.Unix(1<<35, 0), Format: tar.FormatPAX})
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "old", ModTime: time.Unix(-5, 0), Format: tar.FormatPAX})
	w.Close()
	tr := treeFor(t)
	tr.latest = epoch()
	if err := tr.apply(&b); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := tr.write(&out); err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(&out)
	h, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%o %d:%d %d %q", h.Mode, h.Uid, h.Gid, h.ModTime.UnixNano(), h.Uname)
	if want := `4755 7:1048576 2000000000000 ""`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for record := range h.PAXRecords {
		if strings.Contains(record, "overlay") || strings.Contains(record, "selinux") {
			t.Errorf("%s was kept", record)
		}
	}
	if h.PAXRecords["SCHILY.xattr.security.capability"] != "cap" || h.PAXRecords["SCHILY.xattr.user.a"] != "b" {
		t.Errorf("lost an attribute: %v", h.PAXRecords)
	}
	for _, want := range []int64{epoch().Unix(), 0} {
		if h, err = r.Next(); err != nil || h.ModTime.Unix() != want {
			t.Errorf("%s: %v, %v; want %d", h.Name, h.ModTime.Unix(), err, want)
		}
	}
	for _, h := range []*tar.Header{{Typeflag: tar.TypeReg, Name: "a", Uid: -1}, {Typeflag: tar.TypeReg, Name: "a", Gid: 1 << 32}, {Typeflag: 'Z', Name: "a"},
		{Typeflag: tar.TypeSymlink, Name: "a"}, {Typeflag: tar.TypeReg, Name: "a\x00b"},
		{Typeflag: tar.TypeReg, Name: "a", PAXRecords: map[string]string{"SCHILY.xattr.user.x": strings.Repeat("x", 5000)}}} {
		if err := treeFor(t).entry(h, strings.NewReader("")); err == nil {
			t.Errorf("%+v was taken", h)
		}
	}
}

// TestTreeIsReproducible makes the file system of the same layers twice.
func TestTreeIsReproducible(t *testing.T) {
	sum := func() string {
		tr := treeFor(t)
		for _, l := range [][]byte{layerOf(t, "d usr/lib", "l lib usr/lib", "f lib/x 1", "f etc/passwd root:x:0:0::/:", "h lib/y lib/x"), layerOf(t, "f a/.wh..wh..opq ", "f z 2")} {
			if err := tr.apply(bytes.NewReader(l)); err != nil {
				t.Fatal(err)
			}
		}
		if err := tr.tidy(); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "root.ext4")
		if err := tr.writeExt4(path); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("/usr/sbin/e2fsck", "-fn", path).CombinedOutput(); err != nil {
			t.Errorf("e2fsck: %v\n%s", err, out)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := debugfs(t, path, "cat /etc/passwd"); !strings.Contains(got, "root:x:0:0::/:\nrunner:x:1001:1001::/home/runner:/bin/sh\n") {
			t.Errorf("/etc/passwd: %s", got)
		}
		for path2, want := range map[string]string{"/usr/lib/y": "Links: 2", "/lib": "Type: symlink", "/tmp": "Mode:  01777", "/home/runner": "User:  1001", "/etc/machine-id": "Size: 0"} {
			if got := debugfs(t, path, "stat "+path2); !strings.Contains(got, want) {
				t.Errorf("%s: %q is not in\n%s", path2, want, got)
			}
		}
		return fmt.Sprintf("%x", sha256.Sum256(data))
	}
	if a, b := sum(), sum(); a != b {
		t.Errorf("the same layers gave %s and %s", a, b)
	}
}

// TestTreeProperties: what a tree writes is a layer that makes the same tree, and names never leave the root.
func TestTreeProperties(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		part := rapid.SampledFrom([]string{"a", "b", "c", "..", ".", ".wh.a", ".wh.b", ".wh..wh..opq"})
		path := rapid.Map(rapid.SliceOfN(part, 1, 4), func(p []string) string { return strings.Join(p, "/") })
		tr, err := newTree(dir)
		if err != nil {
			rt.Fatal(err)
		}
		defer tr.close()
		for range rapid.IntRange(1, 3).Draw(rt, "layers") {
			tr.layer++
			for range rapid.IntRange(1, 12).Draw(rt, "entries") {
				h := &tar.Header{Name: path.Draw(rt, "name"), Linkname: path.Draw(rt, "target"), ModTime: time.Unix(1, 0),
					Typeflag: rapid.SampledFrom([]byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar}).Draw(rt, "kind")}
				_ = tr.entry(h, strings.NewReader("")) // a refusal leaves a tree, too
			}
		}
		var once, twice bytes.Buffer
		if err := tr.write(&once); err != nil {
			rt.Fatal(err)
		}
		again, err := newTree(dir)
		if err != nil {
			rt.Fatal(err)
		}
		defer again.close()
		for h, r := (*tar.Header)(nil), tar.NewReader(bytes.NewReader(once.Bytes())); ; {
			if h, err = r.Next(); err != nil {
				break
			}
			if _, err := split(h.Name); err != nil || strings.Contains(h.Name, whiteout) {
				rt.Fatalf("wrote the name %q: %v", h.Name, err)
			}
		}
		if err := again.apply(bytes.NewReader(once.Bytes())); err != nil {
			rt.Fatalf("what was written cannot be read: %v", err)
		}
		if err := again.write(&twice); err != nil || !bytes.Equal(once.Bytes(), twice.Bytes()) {
			rt.Fatalf("written again it differs (%v)", err)
		}
	})
}

// FuzzLayer applies foreign bytes over a small root: nothing may panic, or take more than its bounds, and what comes of
// it is a tree.
func FuzzLayer(f *testing.F) {
	for _, l := range [][]string{{"f a 1", "h b a", "l c /a"}, {"f .wh.etc ", "d etc", "f etc/x 1"}, {"l a ../..", "f a/b 1"}, {"c d", "p e"}} {
		f.Add(layerOf(f, l...))
	}
	base := layerOf(f, "d etc", "f etc/passwd root", "l lib usr/lib", "d usr/lib")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, layer []byte) {
		tr, err := newTree(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer tr.close()
		tr.limits = treeLimits{files: 1000, bytes: 1 << 20}
		if err := tr.apply(bytes.NewReader(base)); err != nil {
			t.Fatal(err)
		}
		if tr.apply(bytes.NewReader(layer)) != nil {
			return
		}
		if tr.files > 1000 || tr.bytes > 1<<20 {
			t.Fatalf("%d files, %d bytes", tr.files, tr.bytes)
		}
		if err := tr.write(io.Discard); err != nil {
			t.Fatal(err)
		}
	})
}
