package image_test

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/image"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/qemu"
)

// TestOCIImageBoots makes an image of an OCI image of two layers, which has nothing but busybox, and starts a machine of it.
func TestOCIImageBoots(t *testing.T) {
	if testing.Short() {
		t.Skip("builds an image and boots a virtual machine")
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v: install the Debian package busybox-static (scripts/setup test)", err)
	}
	im := empty.Image
	for _, layer := range [][]*tar.Header{
		{{Name: "bin/busybox", Mode: 0o755, Size: int64(len(busybox)), Typeflag: tar.TypeReg}, {Name: "bin/sh", Linkname: "busybox", Typeflag: tar.TypeSymlink}, {Name: "srv/gone", Typeflag: tar.TypeReg}},
		{{Name: "srv/.wh.gone", Typeflag: tar.TypeReg}, {Name: "srv/box", Linkname: "bin/busybox", Typeflag: tar.TypeLink}},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range layer {
			w.WriteHeader(h)
			if h.Size > 0 {
				w.Write(busybox)
			}
		}
		w.Close()
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
		if err != nil {
			t.Fatal(err)
		}
		if im, err = mutate.AppendLayers(im, l); err != nil {
			t.Fatal(err)
		}
	}
	if im, err = mutate.Config(im, v1.Config{Env: []string{"PATH=/bin"}}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := layout.Write(dir+"/layout", mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: im})); err != nil {
		t.Fatal(err)
	}
	agent := filepath.Join(dir, "tgr-guest")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", agent, "github.com/terraphim/tgr/cmd/tgr-guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	s := &image.Store{Dir: dir + "/images"}
	built, err := s.Build(t.Context(), image.BuildConfig{Name: "busy", Agent: agent, From: "oci-layout:" + dir + "/layout"})
	if err != nil {
		t.Fatal(err)
	}
	defer built.Close()
	if out, err := exec.Command("/usr/sbin/e2fsck", "-fn", built.Root).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	p, err := qemu.New(qemu.Config{
		Image:   qemu.Image{Kernel: built.Kernel, Initrd: built.Initrd, Root: built.Root, Overlay: built.CloneOverlay},
		Journal: vm.Journal{Dir: dir + "/machines"},
	})
	if err != nil {
		t.Fatal(err)
	}
	m, err := p.Start(t.Context(), vm.Spec{ID: "oci"})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	conn, err := m.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := guest.Connect(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for script, want := range map[string]string{
		"busybox id -u; cd ~; busybox touch here && busybox pwd": "1001\n/home/runner\n",
		"busybox ls /srv; busybox stat -c %h /srv/box":           "box\n2\n",
		"busybox ls /opt; busybox mount | busybox grep -c ' / '": "hostedtoolcache\nnode20\nnode24\n1\n",
		"echo x > /tmp/x && busybox cat /tmp/x /etc/hostname":    "x\ntgr\n",
	} {
		var out bytes.Buffer
		exit, err := c.Exec(t.Context(), guest.Cmd{Args: []string{"sh", "-c", script}, User: "runner", Env: []string{"PATH=/bin", "HOME=/home/runner"}}, &out)
		if err != nil || !exit.Success() || !strings.HasSuffix(out.String(), want) {
			t.Errorf("%s: %+v, %v\n%s", script, exit, err, &out)
		}
	}
}
