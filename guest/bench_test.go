package guest

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"path/filepath"
	"strconv"
	"testing"
)

// smallTar is what the runner puts before each step: a script and five empty files.
func smallTar(t testing.TB) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := range 6 {
		h := &tar.Header{Name: "file" + strconv.Itoa(i), Mode: 0o644, Typeflag: tar.TypeReg}
		if i == 0 {
			h.Size = 512
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		w.Write(make([]byte, h.Size))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// BenchmarkStep is one step of a job: put, exec, get.
func BenchmarkStep(b *testing.B) {
	c := agent(b, ServerConfig{})
	ctx := context.Background()
	dir := b.TempDir()
	text := smallTar(b)
	for b.Loop() {
		if err := c.Put(ctx, dir, bytes.NewReader(text)); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Exec(ctx, Cmd{Args: []string{"/bin/true"}}, nil); err != nil {
			b.Fatal(err)
		}
		r, err := c.Get(ctx, dir)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
}

func BenchmarkExec(b *testing.B) {
	c := agent(b, ServerConfig{})
	for b.Loop() {
		if exit, err := c.Exec(context.Background(), Cmd{Args: []string{"/bin/true"}}, nil); err != nil || !exit.Success() {
			b.Fatal(exit, err)
		}
	}
}

func BenchmarkOutput(b *testing.B) {
	c := agent(b, ServerConfig{})
	const size = 256 << 20
	b.SetBytes(size)
	for b.Loop() {
		cmd := sh("exec head -c " + strconv.Itoa(size) + " /dev/zero")
		if exit, err := c.Exec(context.Background(), cmd, io.Discard); err != nil || !exit.Success() {
			b.Fatal(exit, err)
		}
	}
}

func BenchmarkPutGet(b *testing.B) {
	c := agent(b, ServerConfig{})
	ctx := context.Background()
	const size = 64 << 20
	var text bytes.Buffer
	w := tar.NewWriter(&text)
	w.WriteHeader(&tar.Header{Name: "big", Mode: 0o644, Size: size, Typeflag: tar.TypeReg})
	w.Write(make([]byte, size))
	w.Close()
	dir := b.TempDir()
	b.Run("put", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			if err := c.Put(ctx, dir, bytes.NewReader(text.Bytes())); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("get", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			r, err := c.Get(ctx, filepath.Join(dir, "big"))
			if err != nil {
				b.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, r); err != nil || n < size {
				b.Fatal(n, err)
			}
			r.Close()
		}
	})
}
