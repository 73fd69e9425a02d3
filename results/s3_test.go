package results

import (
	"errors"
	"io"
	"io/fs"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

// bucket is an S3 server on a socket, with a bucket.
func bucket(t *testing.T) (address string, backend gofakes3.Backend) {
	t.Helper()
	backend = s3mem.New()
	server := httptest.NewServer(gofakes3.New(backend).Server())
	t.Cleanup(server.Close)
	if err := backend.CreateBucket("kept"); err != nil {
		t.Fatal(err)
	}
	return server.URL + "/kept", backend
}

func openBucket(t *testing.T, address string) Blobs {
	t.Helper()
	b, err := NewS3(S3Config{URL: address, AccessKey: "a", SecretKey: "s", Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestBlobs is the contract of all kinds of Blobs.
func TestBlobs(t *testing.T) {
	address, _ := bucket(t)
	for name, b := range map[string]Blobs{
		"disk": &disk{filepath.Join(t.TempDir(), "blobs")}, "s3": openBucket(t, address), "s3 with a prefix": openBucket(t, address+"/a/b"),
	} {
		t.Run(name, func(t *testing.T) {
			ctx, hash, empty := t.Context(), strings.Repeat("ab", 32), noBytes
			for range 2 {
				for h, data := range map[string]string{hash: "0123456789", empty: ""} {
					file := filepath.Join(t.TempDir(), "f")
					if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
						t.Fatal(err)
					}
					if err := b.Put(ctx, h, file); err != nil {
						t.Fatal(err)
					}
				}
			}
			for _, span := range []span{{0, 10}, {3, 4}, {9, 10}, {0, 0}} {
				r, err := b.Open(ctx, hash, span.from, span.to-span.from)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(io.LimitReader(r, span.to-span.from))
				if string(got) != "0123456789"[span.from:span.to] || errors.Join(err, r.Close()) != nil {
					t.Errorf("%+v: %q, %v", span, got, err)
				}
			}
			for size, want := range map[int64]bool{10: true, 9: false} {
				if ok, err := b.Has(ctx, hash, size); ok != want || err != nil {
					t.Errorf("has it %d bytes: %t, %v", size, ok, err)
				}
			}
			for range 2 {
				if err := b.Remove(ctx, hash); err != nil {
					t.Errorf("remove: %v", err)
				}
			}
			if ok, err := b.Has(ctx, hash, 10); ok || err != nil {
				t.Errorf("after its removal: %t, %v", ok, err)
			}
			r, err := b.Open(ctx, hash, 0, 10)
			if err == nil {
				_, err = r.Read(make([]byte, 1))
				r.Close()
			}
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("open what was removed: %v", err)
			}
		})
	}
}

// TestS3 keeps caches and artifacts in a bucket.
func TestS3(t *testing.T) {
	address, backend := bucket(t)
	s := opened(t, Config{Blobs: openBucket(t, address)})
	c := began(t, s, jobOn(1, "main"))
	data := []byte(strings.Repeat("cache ", 100_000))
	c.want(200, c.save("k", data))
	if key, got := c.restore("k"); key != "k" || string(got) != string(data) {
		t.Errorf("restored %q with %d bytes", key, len(got))
	}
	c.want(200, c.upload("a", "first ", "second ", "third"))
	if got := c.names(); got != "a=first second third" {
		t.Errorf("artifacts %q", got)
	}
	if n := files(t, filepath.Join(s.cfg.Dir, "blobs")) + files(t, filepath.Join(s.cfg.Dir, "tmp")); n != 0 {
		t.Errorf("%d files are on disk", n)
	}
	list, err := s.Caches(t.Context(), "")
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	if err := s.RemoveCaches(t.Context(), list[0].ID); err != nil {
		t.Fatal(err)
	}
	c.want(200, c.artifact("DeleteArtifact", map[string]any{"name": "a"}))
	objects, err := backend.ListBucket("kept", nil, gofakes3.ListBucketPage{})
	if err != nil || len(objects.Contents) != 0 {
		t.Errorf("%d objects are left, %v", len(objects.Contents), err)
	}
}

// A bucket that fails is our fault, and the client is told to try again.
func TestS3Down(t *testing.T) {
	address, backend := bucket(t)
	s := opened(t, Config{Blobs: openBucket(t, address)})
	c := began(t, s, jobOn(1, "main"))
	url := c.create("k")
	if err := backend.DeleteBucket("kept"); err != nil {
		t.Fatal(err)
	}
	c.want(503, c.do("PUT", url, strings.NewReader("x"), "x-ms-blob-type", "BlockBlob"))
	if err := backend.CreateBucket("kept"); err != nil {
		t.Fatal(err)
	}
	c.want(201, c.do("PUT", url, strings.NewReader("x"), "x-ms-blob-type", "BlockBlob"))
	c.want(200, c.finalize("k", 1))
	if key, got := c.restore("k"); key != "k" || string(got) != "x" {
		t.Errorf("restored %q %q", key, got)
	}
}

func TestS3Address(t *testing.T) {
	for _, address := range []string{"", "bucket", "ftp://h/b", "https://h", "https://h/", "https://u:p@h/b", "https://h/b?x=y", "://"} {
		if _, err := NewS3(S3Config{URL: address}); err == nil {
			t.Errorf("%q is believed", address)
		}
	}
}
