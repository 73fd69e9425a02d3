package results

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"strconv"
	"sync"
)

// The digest of an artifact is that of all its bytes in their order, which only the block list says, at the end. But
// GitHub's clients number their blocks, so that the digest can follow the upload, and the end need not wait for it. What
// was followed wrongly, or not at all, is read again.

// maxFollowed is how many uploads of a session are followed at once.
const maxFollowed = 32

// follower is the digest of an upload so far.
type follower struct {
	blobs Blobs
	ctx   context.Context // ends when nobody wants the digest any more
	stop  context.CancelFunc

	mu     sync.Mutex
	blocks map[int]part // that have come and are not in sum yet, by their number
	next   int          // the number of the block that sum waits for
	busy   bool         // somebody reads
	idle   *sync.Cond   // busy became false

	sum    hash.Hash // belongs to who is busy, and then to who has stopped the follower
	hashed []string  // the blocks in sum; likewise
}

// followers are the uploads of a session that are followed. The zero value follows none.
type followers struct {
	mu   sync.Mutex
	of   map[int64]*follower
	over bool
}

// blockNumber is the number that ends a block's id, if it is of the kind that GitHub's clients make: twelve digits.
// What came in one piece is the first block.
func blockNumber(id string) (int, bool) {
	if id == wholeBlob {
		return 0, true
	}
	b, err := base64.StdEncoding.DecodeString(id)
	const digits = 12
	if err != nil || len(b) < digits {
		return 0, false
	}
	n, err := strconv.ParseUint(string(b[len(b)-digits:]), 10, 31)
	return int(n), err == nil
}

// add takes a block that was kept. A block that comes again, with other bytes, is noticed when the digest is taken.
func (f *followers) add(blobs Blobs, id int64, p part) {
	n, ok := blockNumber(p.block)
	if !ok {
		return
	}
	f.mu.Lock()
	one := f.of[id]
	if one == nil && !f.over && len(f.of) < maxFollowed {
		one = &follower{blobs: blobs, blocks: map[int]part{}, sum: sha256.New()}
		one.idle = sync.NewCond(&one.mu)
		one.ctx, one.stop = context.WithCancel(context.Background())
		if f.of == nil {
			f.of = map[int64]*follower{}
		}
		f.of[id] = one
	}
	f.mu.Unlock()
	if one == nil {
		return
	}
	one.mu.Lock()
	defer one.mu.Unlock()
	one.blocks[n] = p
	if _, ok := one.blocks[one.next]; ok && !one.busy {
		one.busy = true
		go one.follow()
	}
}

// take ends following an upload and returns how far its digest is, and of which blocks it is.
func (f *followers) take(id int64) (hash.Hash, []string) {
	f.mu.Lock()
	one := f.of[id]
	delete(f.of, id)
	f.mu.Unlock()
	if one == nil {
		return sha256.New(), nil
	}
	defer one.stop()
	one.mu.Lock()
	defer one.mu.Unlock()
	one.wait()
	return one.sum, one.hashed
}

// wait returns when all blocks that follow one another are in sum. It is called with the lock held.
func (o *follower) wait() {
	for o.busy {
		o.idle.Wait()
	}
}

// close ends following all uploads, and returns when nobody reads any more.
func (f *followers) close() {
	f.mu.Lock()
	f.over = true
	all := f.of
	f.of = nil
	f.mu.Unlock()
	for _, one := range all {
		one.stop()
		one.mu.Lock()
		one.wait()
		one.mu.Unlock()
	}
}

// follow adds the blocks that follow one another to the digest, as long as there are some.
func (o *follower) follow() {
	buf := make([]byte, copyBuffer)
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		p, ok := o.blocks[o.next]
		if !ok {
			break
		}
		delete(o.blocks, o.next)
		o.next++
		o.mu.Unlock()
		err := addTo(o.ctx, o.sum, o.blobs, p, buf)
		o.mu.Lock()
		if err != nil { // what is in sum now is of no use
			o.hashed, o.next = []string{""}, -1
			break
		}
		o.hashed = append(o.hashed, p.hash)
	}
	o.busy = false
	o.idle.Broadcast()
}

// addTo adds the bytes of a part to a digest.
func addTo(ctx context.Context, sum io.Writer, blobs Blobs, p part, buf []byte) error {
	in, err := blobs.Open(ctx, p.hash, 0, p.size)
	if err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{sum}, &until{ctx, in}, buf)
	if err == nil && n != p.size {
		err = io.ErrUnexpectedEOF
	}
	return errors.Join(err, in.Close())
}

// until reads while its context lives.
type until struct {
	ctx context.Context
	r   io.Reader
}

// Read reads.
func (u *until) Read(b []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(b)
}

// digest is the SHA-256 of the bytes of a blob's parts.
func (x *Session) digest(ctx context.Context, id int64, list []part) (string, error) {
	sum, hashed := x.follows.take(id)
	if !begins(list, hashed) {
		sum, hashed = sha256.New(), nil
	}
	buf := make([]byte, copyBuffer)
	for _, p := range list[len(hashed):] {
		if err := addTo(ctx, sum, x.s.blobs, p, buf); err != nil {
			return "", err
		}
	}
	return "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}

// begins reports whether the parts begin with those that have these hashes.
func begins(list []part, hashes []string) bool {
	if len(hashes) > len(list) {
		return false
	}
	for i, h := range hashes {
		if list[i].hash != h {
			return false
		}
	}
	return true
}
