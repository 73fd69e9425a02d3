package results

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
)

// reads is a store that counts what is opened, and refuses it on demand.
type reads struct {
	Blobs
	opened atomic.Int64
	broken atomic.Bool
}

func (r *reads) Open(ctx context.Context, hash string, off, n int64) (io.ReadCloser, error) {
	r.opened.Add(1)
	if r.broken.Load() {
		return nil, fmt.Errorf("the store is broken")
	}
	return r.Blobs.Open(ctx, hash, off, n)
}

// numbered is a block's id as GitHub's clients make them.
func numbered(n int) string {
	return base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "5bd0ec5e-7c1f-4d52-8a5b-0c1f9f9c9f11%012d", n))
}

// caughtUp waits until a session's followers have nothing to do.
func (x *Session) caughtUp() {
	x.follows.mu.Lock()
	defer x.follows.mu.Unlock()
	for _, f := range x.follows.of {
		f.mu.Lock()
		f.wait()
		f.mu.Unlock()
	}
}

// The digest of an artifact follows its blocks as they come, and is right whatever their order, their names and what
// comes twice.
func TestDigestFollows(t *testing.T) {
	type block struct {
		id, bytes string
	}
	n := func(i int, bytes string) block { return block{numbered(i), bytes} }
	for _, tt := range []struct {
		name   string
		sent   []block
		list   []string
		want   string
		atEnd  int64 // parts that are read when the artifact is finalized
		broken bool  // while the blocks come
	}{
		{"in order", []block{n(0, "a"), n(1, "b"), n(2, "c")}, []string{numbered(0), numbered(1), numbered(2)}, "abc", 0, false},
		{"out of order", []block{n(2, "c"), n(1, "b"), n(0, "a")}, []string{numbered(0), numbered(1), numbered(2)}, "abc", 0, false},
		{"the end is missing first", []block{n(0, "a"), n(2, "c")}, []string{numbered(0), numbered(2)}, "ac", 1, false},
		{"sent again, the same", []block{n(0, "a"), n(1, "b"), n(0, "a")}, []string{numbered(0), numbered(1)}, "ab", 0, false},
		{"sent again, other bytes", []block{n(0, "a"), n(1, "b"), n(0, "x")}, []string{numbered(0), numbered(1)}, "xb", 2, false},
		{"listed in another order", []block{n(0, "a"), n(1, "b")}, []string{numbered(1), numbered(0)}, "ba", 2, false},
		{"fewer are listed", []block{n(0, "a"), n(1, "b"), n(2, "c")}, []string{numbered(0), numbered(1)}, "ab", 2, false},
		{"numbers that begin elsewhere", []block{n(7, "a"), n(8, "b")}, []string{numbered(7), numbered(8)}, "ab", 2, false},
		{"no numbers", []block{{blockID(0), "a"}, {blockID(1), "b"}}, []string{blockID(0), blockID(1)}, "ab", 2, false},
		{"one block", []block{n(0, "a")}, []string{numbered(0)}, "a", 0, false},
		{"in one piece", []block{{wholeBlob, "a"}}, nil, "a", 0, false},
		{"in one piece, sent again, other bytes", []block{{wholeBlob, "a"}, {wholeBlob, "x"}}, nil, "x", 1, false},
		{"what could not be read", []block{n(0, "a"), n(1, "b")}, []string{numbered(0), numbered(1)}, "ab", 2, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			store := &reads{Blobs: &disk{dir + "/blobs"}}
			c := began(t, opened(t, Config{Dir: dir, Blobs: store}), jobOn(1, "main"))
			url := c.want(200, c.artifact("CreateArtifact", map[string]any{"name": "x", "version": 7})).field("signed_upload_url")
			store.broken.Store(tt.broken)
			for _, b := range tt.sent {
				at := url
				if b.id != wholeBlob {
					at += "&comp=block&blockid=" + b.id
				}
				c.want(201, c.do("PUT", at, strings.NewReader(b.bytes), "x-ms-blob-type", "BlockBlob"))
				c.x.caughtUp()
			}
			store.broken.Store(false)
			if tt.list != nil {
				c.want(201, c.do("PUT", url+"&comp=blocklist", strings.NewReader("<BlockList><Latest>"+strings.Join(tt.list, "</Latest><Latest>")+"</Latest></BlockList>")))
			}
			before := store.opened.Load()
			sum := sha256.Sum256([]byte(tt.want))
			right := "sha256:" + hex.EncodeToString(sum[:])
			c.want(200, c.artifact("FinalizeArtifact", map[string]any{"name": "x", "size": fmt.Sprint(len(tt.want)), "hash": right}))
			if got := store.opened.Load() - before; got != tt.atEnd {
				t.Errorf("%d parts were read at the end, want %d", got, tt.atEnd)
			}
			if len(c.x.follows.of) != 0 {
				t.Error("the upload is followed still")
			}
		})
	}
}

// A digest that was followed is held against what the client says: neither a wrong one nor another upload's passes.
func TestDigestRefused(t *testing.T) {
	c := began(t, opened(t, Config{}), jobOn(1, "main"))
	url := c.want(200, c.artifact("CreateArtifact", map[string]any{"name": "x", "version": 7})).field("signed_upload_url")
	c.want(201, c.do("PUT", url+"&comp=block&blockid="+numbered(0), strings.NewReader("a")))
	c.want(201, c.do("PUT", url+"&comp=block&blockid="+numbered(1), strings.NewReader("b")))
	c.want(201, c.do("PUT", url+"&comp=blocklist", strings.NewReader("<BlockList><Latest>"+numbered(0)+"</Latest><Latest>"+numbered(1)+"</Latest></BlockList>")))
	wrong := sha256.Sum256([]byte("ba"))
	c.want(400, c.artifact("FinalizeArtifact", map[string]any{"name": "x", "size": "2", "hash": "sha256:" + hex.EncodeToString(wrong[:])}))
	right := sha256.Sum256([]byte("ab")) // and is read again
	c.want(200, c.artifact("FinalizeArtifact", map[string]any{"name": "x", "size": "2", "hash": "sha256:" + hex.EncodeToString(right[:])}))
}

// Uploads beyond what is followed are read at the end, and a session that ends leaves nobody reading.
func TestDigestBounded(t *testing.T) {
	c := began(t, opened(t, Config{}), jobOn(1, "main"))
	for i := range maxFollowed + 3 {
		c.want(200, c.artifact("CreateArtifact", map[string]any{"name": fmt.Sprint("x", i), "version": 7}))
		url := c.artifact("CreateArtifact", map[string]any{"name": fmt.Sprint("y", i), "version": 7}).field("signed_upload_url")
		c.want(201, c.do("PUT", url+"&comp=block&blockid="+numbered(0), strings.NewReader("a")))
	}
	c.x.follows.mu.Lock()
	n := len(c.x.follows.of)
	c.x.follows.mu.Unlock()
	if n != maxFollowed {
		t.Errorf("%d uploads are followed, want %d", n, maxFollowed)
	}
	if err := c.x.Close(); err != nil {
		t.Error(err)
	}
	c.x.follows.add(c.x.s.blobs, 1, part{block: numbered(0)})
	if len(c.x.follows.of) != 0 {
		t.Error("an upload is followed after the session's end")
	}
}
