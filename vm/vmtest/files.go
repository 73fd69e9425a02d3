package vmtest

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr/guest"
)

// node is one entry of a tree.
type node struct {
	Name, Link, Text string
	Type             byte
	Mode             int64
	Time             time.Time
}

func pack(t *testing.T, nodes []node) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, n := range nodes {
		h := &tar.Header{Name: n.Name, Linkname: n.Link, Typeflag: n.Type, Mode: n.Mode, ModTime: n.Time, Format: tar.FormatPAX}
		if n.Type == tar.TypeReg {
			h.Size = int64(len(n.Text))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, n.Text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// fetch gets a path, and returns its entries and what was skipped.
func (s *suite) fetch(t *testing.T, c *guest.Client, name string) (nodes []node, skipped []string) {
	t.Helper()
	r, err := c.Get(s.ctx(t), name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, node{Name: h.Name, Link: h.Linkname, Text: string(text), Type: h.Typeflag, Mode: h.Mode, Time: h.ModTime.UTC()})
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	if sk, ok := r.(interface{ Skipped() []string }); ok {
		skipped = sk.Skipped()
	}
	return nodes, skipped
}

// putGet: a tree comes back as it was sent, twice over itself.
func (s *suite) putGet(t *testing.T, c *guest.Client) {
	dir := path.Join(s.temp(t), "made", "on the way")
	when := time.Date(2024, 2, 29, 12, 34, 56, 789_000_000, time.UTC)
	tree := []node{
		{Name: "./", Type: tar.TypeDir, Mode: 0o750, Time: when},
		{Name: "empty", Type: tar.TypeReg, Mode: 0o600, Time: when},
		{Name: "hard", Type: tar.TypeReg, Text: "two names", Mode: 0o644, Time: when},
		{Name: "script.sh", Type: tar.TypeReg, Text: "#!/bin/sh\necho ran\n", Mode: 0o755, Time: when},
		{Name: "sealed/", Type: tar.TypeDir, Mode: 0o555, Time: when},
		{Name: "sealed/big", Type: tar.TypeReg, Text: strings.Repeat("0123456789", 50_000), Mode: 0o444, Time: when},
		{Name: "sealed/same", Type: tar.TypeLink, Link: "hard", Mode: 0o644, Time: when},
		{Name: "to-etc", Type: tar.TypeSymlink, Link: "/etc", Mode: 0o777},
		{Name: "to-script", Type: tar.TypeSymlink, Link: "script.sh", Mode: 0o777},
		{Name: "ünïcode \xc3\xbc", Type: tar.TypeReg, Text: "x", Mode: 0o640, Time: when},
	}
	for range 2 {
		if err := c.Put(s.ctx(t), dir, pack(t, tree)); err != nil {
			t.Fatal(err)
		}
	}
	got, skipped := s.fetch(t, c, dir)
	for i := range got {
		if got[i].Type == tar.TypeSymlink {
			got[i].Time = time.Time{} // links keep none
		}
	}
	if diff := cmp.Diff(tree, got); diff != "" {
		t.Errorf("the tree differs (-sent +got):\n%s", diff)
	}
	if len(skipped) > 0 {
		t.Errorf("skipped %q", skipped)
	}
	if got := s.output(t, c, "cd '"+dir+"' && ./script.sh"); got != "ran\n" {
		t.Errorf("the script said %q", got)
	}
	one, _ := s.fetch(t, c, path.Join(dir, "script.sh"))
	if len(one) != 1 || one[0].Name != "script.sh" || one[0].Mode != 0o755 {
		t.Errorf("one file came as %+v", one)
	}
}

// hostilePaths: a tar writes nowhere but into its folder.
func (s *suite) hostilePaths(t *testing.T, c *guest.Client) {
	base := s.temp(t)
	outside := path.Join(base, "outside")
	s.output(t, c, "mkdir -p '"+outside+"' && echo precious > '"+outside+"/file'")
	file := func(name string) node {
		return node{Name: name, Type: tar.TypeReg, Text: "evil", Mode: 0o644}
	}
	link := func(name, to string) node { return node{Name: name, Link: to, Type: tar.TypeSymlink, Mode: 0o777} }
	for i, tt := range []struct {
		name string
		tree []node
	}{
		{"parent", []node{file("../outside/evil")}},
		{"parent inside", []node{file("a/../../outside/evil")}},
		{"parent that stays", []node{file("a/../evil")}},
		{"absolute", []node{file(outside + "/evil")}},
		{"through a link", []node{link("out", "../outside"), file("out/evil")}},
		{"through an absolute link", []node{link("out", outside), file("out/evil")}},
		{"through two links", []node{link("a", "b"), link("b", "../outside"), file("a/evil")}},
		{"folder through a link", []node{link("out", outside), {Name: "out/evil", Type: tar.TypeDir, Mode: 0o755}}},
		{"hard link out", []node{{Name: "evil", Link: "../outside/file", Type: tar.TypeLink}}},
		{"absolute hard link", []node{{Name: "evil", Link: outside + "/file", Type: tar.TypeLink}}},
		{"hard link through a link", []node{link("out", outside), {Name: "evil", Link: "out/file", Type: tar.TypeLink}}},
		{"device", []node{{Name: "null", Type: tar.TypeChar, Mode: 0o666}}},
		{"pipe", []node{{Name: "pipe", Type: tar.TypeFifo, Mode: 0o666}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := path.Join(base, fmt.Sprintf("in%d", i))
			err := c.Put(s.ctx(t), dir, pack(t, tt.tree))
			if !errors.Is(err, guest.ErrRefused) {
				t.Errorf("got %v, want ErrRefused", err)
			}
			if got := s.output(t, c, "cd '"+outside+"' && ls -A && cat file && stat -c %h file"); got != "file\nprecious\n1\n" {
				t.Errorf("outside there is now %q", got)
			}
		})
	}
	t.Run("in the place of a link", func(t *testing.T) {
		dir := path.Join(base, "replaced")
		if err := c.Put(s.ctx(t), dir, pack(t, []node{link("file", outside+"/file"), file("file")})); err != nil {
			t.Fatal(err)
		}
		if got := s.output(t, c, "cat '"+outside+"/file' '"+dir+"/file'"); got != "precious\nevil" {
			t.Errorf("contents %q", got)
		}
	})
	t.Run("relative folder", func(t *testing.T) {
		if err := c.Put(s.ctx(t), "relative", pack(t, nil)); !errors.Is(err, guest.ErrRefused) {
			t.Errorf("got %v, want ErrRefused", err)
		}
	})
	t.Run("garbage", func(t *testing.T) {
		if err := c.Put(s.ctx(t), path.Join(base, "garbage"), strings.NewReader(strings.Repeat("garbage ", 1<<18))); err == nil {
			t.Error("no error")
		}
	})
}

// getOddities: what is missing, what is no file, what leads elsewhere.
func (s *suite) getOddities(t *testing.T, c *guest.Client) {
	dir := s.temp(t)
	if _, err := c.Get(s.ctx(t), path.Join(dir, "nonesuch")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is missing: %v, want fs.ErrNotExist", err)
	}
	if _, err := c.Get(s.ctx(t), "relative"); !errors.Is(err, guest.ErrRefused) {
		t.Errorf("a relative path: %v, want ErrRefused", err)
	}
	s.output(t, c, "mkdir -p '"+dir+"' && cd '"+dir+"' && mkfifo pipe && ln -s /etc/passwd link && ln -s / root && echo x > x")
	nodes, skipped := s.fetch(t, c, dir)
	var names []string
	for _, n := range nodes {
		names = append(names, fmt.Sprintf("%c %s %s", n.Type, n.Name, n.Link))
	}
	if diff := cmp.Diff([]string{"5 ./ ", "2 link /etc/passwd", "2 root /", "0 x "}, names); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if len(skipped) != 1 || !strings.HasPrefix(skipped[0], "pipe: ") {
		t.Errorf("skipped %q, want the pipe", skipped)
	}
	if one, _ := s.fetch(t, c, path.Join(dir, "link")); len(one) != 1 || one[0].Type != tar.TypeSymlink {
		t.Errorf("a link came as %+v", one)
	}
}
