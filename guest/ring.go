package guest

import (
	"fmt"
	"sync"
)

const (
	ringSize   = 2 << 20      // bytes of output that the agent keeps of a process, overhead included
	ringWindow = ringSize / 2 // of these may be without the host's ack; the rest is there for a re-attach
	chunkMin   = 4 << 10      // a chunk has at least this capacity, so that small writes share one
	chunkCost  = 64           // what a chunk costs beside its bytes
)

// ring keeps the last of a process's output, in the order in which it came, until the host has it and the
// space is needed. A sequence number is the count of bytes before it, of both streams together.
type ring struct {
	mu     sync.Mutex
	moved  sync.Cond // something came, went, was acked or ended
	chunks []chunk
	cost   int    // of chunks
	end    uint64 // sequence number of the next byte to come
	acked  uint64
	closed bool // no more will come
	gone   bool // nobody will read: writes are thrown away
}

// chunk is a stretch of one stream. It grows in place: who has a slice of it keeps what it had.
type chunk struct {
	kind kind // kStdout or kStderr
	seq  uint64
	data []byte
}

func newRing() *ring {
	r := &ring{}
	r.moved.L = &r.mu
	return r
}

// write adds b, of at most maxOutput bytes, and blocks while the host is a window behind.
func (r *ring) write(k kind, b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.gone && !r.closed && !r.fits(len(b)) {
		r.moved.Wait()
	}
	if r.gone || r.closed || len(b) == 0 {
		return
	}
	last := len(r.chunks) - 1
	if last >= 0 && r.chunks[last].kind == k && cap(r.chunks[last].data)-len(r.chunks[last].data) >= len(b) {
		r.chunks[last].data = append(r.chunks[last].data, b...)
	} else {
		c := chunk{kind: k, seq: r.end, data: append(make([]byte, 0, max(len(b), chunkMin)), b...)}
		r.chunks = append(r.chunks, c)
		r.cost += cap(c.data) + chunkCost
	}
	r.end += uint64(len(b))
	r.moved.Broadcast()
}

// fits makes room for n bytes where it may, and reports whether they may be written.
func (r *ring) fits(n int) bool {
	need := max(n, chunkMin) + chunkCost
	for r.cost+need > ringSize && len(r.chunks) > 0 {
		c := r.chunks[0]
		if c.seq+uint64(len(c.data)) > r.acked {
			break
		}
		r.cost -= cap(c.data) + chunkCost
		r.chunks[0].data = nil
		r.chunks = r.chunks[1:]
	}
	return r.cost+need <= ringSize && r.end-r.acked+uint64(n) <= ringWindow
}

// cursor is one reader of a ring. Its fields belong to the ring's lock.
type cursor struct {
	seq     uint64
	stopped bool
}

// from returns a reader that begins at seq: ErrGone if that is no longer kept, ErrRefused if it was never written.
func (r *ring) from(seq uint64) (*cursor, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	first := r.end
	if len(r.chunks) > 0 {
		first = r.chunks[0].seq
	}
	if seq < first {
		return nil, fmt.Errorf("%w: it is kept from byte %d on, byte %d was asked for", ErrGone, first, seq)
	}
	if seq > r.end {
		return nil, fmt.Errorf("%w: output from byte %d on, when there are %d", ErrRefused, seq, r.end)
	}
	// A host that asks from here on has everything before.
	r.acked = max(r.acked, seq)
	r.moved.Broadcast()
	return &cursor{seq: seq}, nil
}

// next returns the bytes at the cursor, at most maxOutput of one stream, and moves it past them. It blocks until
// there are some; ok is false at the end of the output, and when the cursor was stopped.
func (r *ring) next(c *cursor) (k kind, seq uint64, b []byte, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !c.stopped && c.seq == r.end && !r.closed {
		r.moved.Wait()
	}
	if c.stopped || c.seq == r.end {
		return 0, 0, nil, false
	}
	// The reader is mostly near the end.
	i := len(r.chunks) - 1
	for i > 0 && r.chunks[i].seq > c.seq {
		i--
	}
	ch := r.chunks[i]
	b = ch.data[c.seq-ch.seq:]
	b = b[:min(len(b), maxOutput)]
	seq = c.seq
	c.seq += uint64(len(b))
	return ch.kind, seq, b, true
}

// ack notes what the host has; a number that it cannot have is ignored.
func (r *ring) ack(seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if seq > r.acked && seq <= r.end {
		r.acked = seq
		r.moved.Broadcast()
	}
}

func (r *ring) stop(c *cursor) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c.stopped = true
	r.moved.Broadcast()
}

func (r *ring) stopped(c *cursor) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return c.stopped
}

// close ends the output: what is kept can still be read.
func (r *ring) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.moved.Broadcast()
}

// discard lets writes through to nowhere.
func (r *ring) discard() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone = true
	r.chunks, r.cost = nil, 0
	r.closed = true
	r.moved.Broadcast()
}
