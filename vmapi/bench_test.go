package vmapi

import (
	"archive/tar"
	"bytes"
	"io"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/terraphim/tgr/guest"
)

// benchMachine is a machine over HTTP, without the document's checks.
func benchMachine(b *testing.B) *Machine {
	b.Helper()
	s, err := New(Config{Key: testKey, Open: processes(b.TempDir())})
	if err != nil {
		b.Fatal(err)
	}
	hs := httptest.NewServer(s)
	c := must(NewClient(ClientConfig{URL: hs.URL, Token: must(NewToken(testKey, "bench", time.Hour))}))
	m, err := c.Start(ctx(b), CreateRequest{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		m.Close()
		s.Close()
		hs.Close()
	})
	return m
}

func BenchmarkExec(b *testing.B) {
	m := benchMachine(b)
	for b.Loop() {
		if exit, err := m.Exec(b.Context(), guest.Cmd{Args: []string{"/bin/true"}}, nil); err != nil || !exit.Success() {
			b.Fatal(exit, err)
		}
	}
}

func BenchmarkFiles(b *testing.B) {
	const size = 64 << 20
	m := benchMachine(b)
	var t bytes.Buffer
	w := tar.NewWriter(&t)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644, Size: size}); err != nil {
		b.Fatal(err)
	}
	w.Write(make([]byte, size))
	w.Close()
	dir := m.VM().Place.Home + "/bench"
	b.Run("put", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			if err := m.Put(b.Context(), dir, bytes.NewReader(t.Bytes())); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("get", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			r, err := m.Get(b.Context(), dir)
			if err == nil {
				_, err = io.Copy(io.Discard, r)
				r.Close()
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("output", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			if _, err := m.Exec(b.Context(), guest.Cmd{Args: []string{"/bin/cat", dir + "/f"}}, io.Discard); err != nil {
				b.Fatal(err)
			}
		}
	})
}
