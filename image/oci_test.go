package image

import (
	"bytes"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// ociImage makes an image of layers; see layerOf.
func ociImage(t *testing.T, arch string, layers ...[]byte) v1.Image {
	t.Helper()
	im, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: arch, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Env: []string{"PATH=/opt/bin:/bin", "HOME=/nowhere", "LAYER=" + arch}, User: "app", WorkingDir: "/srv"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range layers {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		if err != nil {
			t.Fatal(err)
		}
		if im, err = mutate.AppendLayers(im, l); err != nil {
			t.Fatal(err)
		}
	}
	return im
}

// serveRegistry serves a registry on loopback and returns its address.
func serveRegistry(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

func push(t *testing.T, ref string, im v1.Image) string {
	t.Helper()
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(r, im); err != nil {
		t.Fatal(err)
	}
	d, err := im.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// TestOCISources reads the same image from a registry, by tag, by digest and in an index of several platforms, from a
// layout and from an archive.
func TestOCISources(t *testing.T) {
	im := ociImage(t, "amd64", layerOf(t, "d bin", "f bin/sh the shell", "f etc/gone 1"), layerOf(t, "f etc/.wh.gone ", "f srv/app 2"))
	other := ociImage(t, "arm64", layerOf(t, "f wrong 1"))
	host := serveRegistry(t)
	digest := push(t, host+"/app:1", im)
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: im, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	many, err := name.ParseReference(host + "/app:many")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(many, index); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := layout.Write(dir+"/layout", index); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("app:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(dir+"/app.tar", tag, im); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{"oci:" + host + "/app:1", "oci:" + host + "/app@" + digest, "oci:" + host + "/app:many", "oci-layout:" + dir + "/layout", "docker-archive:" + dir + "/app.tar"} {
		tr, r := treeFor(t), Root{}
		if err := (BuildConfig{From: from}).ociRoot(t.Context(), tr, &r); err != nil {
			t.Errorf("%s: %v", from, err)
			continue
		}
		if diff := cmp.Diff([]string{"d bin", "f bin/sh the shell", "d etc", "d srv", "f srv/app 2"}, listing(t, tr)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", from, diff)
		}
		if r.From != from || r.Digest == "" || strings.HasPrefix(from, "oci:") && r.Digest != digest {
			t.Errorf("%s: recorded as %s, digest %s, want %s", from, r.From, r.Digest, digest)
		}
		want := &ImageConfig{Env: []string{"PATH=/opt/bin:/bin", "HOME=/nowhere", "LAYER=amd64"}, User: "app", WorkingDir: "/srv"}
		if diff := cmp.Diff(want, r.Config); diff != "" {
			t.Errorf("%s: configuration (-want +got):\n%s", from, diff)
		}
		env := map[string]string{"PATH": "/bin", "HOME": "/home/runner"}
		r.Config.SetEnv(env)
		if diff := cmp.Diff(map[string]string{"PATH": "/opt/bin:/bin", "HOME": "/home/runner", "LAYER": "amd64"}, env); diff != "" {
			t.Errorf("environment (-want +got):\n%s", diff)
		}
	}
}

func TestOCIRefused(t *testing.T) {
	host := serveRegistry(t)
	push(t, host+"/arm:1", ociImage(t, "arm64", layerOf(t, "f a 1")))
	push(t, host+"/hostile:1", ociImage(t, "amd64", layerOf(t, "f ok 1"), layerOf(t, "f ../../etc/cron.d/x 1")))
	push(t, host+"/notatar:1", ociImage(t, "amd64", bytes.Repeat([]byte("no tar "), 1000)))
	trailing := append(layerOf(t, "f ok 1"), bytes.Repeat([]byte{1}, 2<<20)...)
	push(t, host+"/trailing:1", ociImage(t, "amd64", trailing))
	lying := filepath.Join(t.TempDir(), "lying")
	p, err := layout.Write(lying, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: ociImage(t, "amd64", layerOf(t, "f a 1"))}))
	if err != nil {
		t.Fatal(err)
	}
	swapBlob(t, p, layerOf(t, "f evil 1"))
	for from, want := range map[string]string{
		"oci:" + host + "/arm:1":      "it is for linux on arm64",
		"oci:" + host + "/none:1":     "NAME_UNKNOWN",
		"oci:" + host + "/hostile:1":  "leaves the root",
		"oci:" + host + "/notatar:1":  "layer 1",
		"oci:" + host + "/trailing:1": "goes on after its end",
		"oci-layout:" + lying:         "the image's configuration says",
		"oci-layout:/nonexistent":     "no such file",
		"docker-archive:/nonexistent": "no such file",
		"oci:":                        "is no image",
		"debian:12":                   "is no image",
		"oci:UPPER CASE":              "could not parse reference",
	} {
		err := (BuildConfig{From: from}).ociRoot(t.Context(), treeFor(t), &Root{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error with %q", from, err, want)
		}
	}
}

// swapBlob puts other contents in the place of the largest blob, under the same digest.
func swapBlob(t *testing.T, p layout.Path, data []byte) {
	t.Helper()
	blobs, err := filepath.Glob(filepath.Join(string(p), "blobs", "sha256", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blobs {
		old, err := os.ReadFile(b)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.HasPrefix(old, []byte{0x1f, 0x8b}) { // the layer: gzip
			if err := os.WriteFile(b, data, 0o644); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("there is no layer to swap")
}

func TestFromAndFull(t *testing.T) {
	s, b := fixture(t)
	b.From, b.Full = "oci:x", true
	if _, err := s.Build(t.Context(), b); err == nil || !strings.Contains(err.Error(), "cannot be added") {
		t.Errorf("got %v", err)
	}
	if a, b := (BuildConfig{From: "oci:x"}).recipe(), (BuildConfig{From: "oci:y"}).recipe(); a == b {
		t.Error("two images have one recipe")
	}
	if a, b := (BuildConfig{Full: true}).recipe(), (BuildConfig{}).recipe(); a == b {
		t.Error("the full image has the recipe of the other")
	}
}

func TestPrune(t *testing.T) {
	s, b := fixture(t)
	im := build(t, s, b)
	left := filepath.Join(s.Dir, b.Name, "build-1.tmp")
	if err := os.WriteFile(left, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := im.OverlayTemplate(t.Context(), MinOverlay); err != nil {
		t.Fatal(err)
	}
	freed, err := s.Prune(t.Context())
	if err != nil || freed < 1<<20 {
		t.Errorf("freed %d bytes, %v", freed, err)
	}
	for _, gone := range []string{left, filepath.Join(s.Dir, blankDisks)} {
		if _, err := os.Stat(gone); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v, want it gone", gone, err)
		}
	}
	if again, err := s.Open(t.Context(), b.Name); err != nil {
		t.Error(err)
	} else {
		again.Close()
	}
	if err := im.CloneOverlay(t.Context(), filepath.Join(t.TempDir(), "disk"), MinOverlay); err != nil {
		t.Errorf("a disk after pruning: %v", err)
	}
}
