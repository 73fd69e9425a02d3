package guest

import (
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// pump moves a pipe into the ring. It runs until the pipe ends, which what a process left in the background may
// put off for ever: enough lets it go on into nothing, so that nobody is killed by a pipe without a reader.
type pump struct {
	file    *os.File
	raw     syscall.RawConn
	kind    kind
	ring    *ring
	buffers *buffers
	drained chan struct{} // closed when all that matters is in the ring
	once    sync.Once

	mu    sync.Mutex // held while the pipe is read and the count kept
	total uint64     // bytes read
	inRng uint64     // bytes handed to the ring
	last  uint64     // with limited, the count at which enough is read
	limit bool
}

func newPump(f *os.File, k kind, r *ring, buffers *buffers) (*pump, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &pump{file: f, raw: raw, kind: k, ring: r, buffers: buffers, drained: make(chan struct{})}, nil
}

func (u *pump) run() {
	defer u.file.Close()
	defer u.finish()
	small := u.buffers.get()
	defer u.buffers.put(small)
	buf := small[:maxData]
	for {
		n, err := u.read(buf)
		if err != nil || n == 0 {
			return
		}
		b := buf[:n]
		if n == len(buf) && n < maxOutput { // few processes print so much that a larger buffer pays
			buf = make([]byte, maxOutput)
		}
		u.mu.Lock()
		limit, left := u.limit, u.last-u.inRng
		u.mu.Unlock()
		if limit && uint64(n) > left {
			b = b[:left]
		}
		u.ring.write(u.kind, b)
		u.mu.Lock()
		u.inRng += uint64(len(b))
		full := u.limit && u.inRng >= u.last
		u.mu.Unlock()
		if full {
			u.finish()
			io.Copy(io.Discard, u.file)
			return
		}
	}
}

// read reads once, holding the lock while the pipe and the count differ.
func (u *pump) read(buf []byte) (n int, err error) {
	rerr := u.raw.Read(func(fd uintptr) bool {
		u.mu.Lock()
		defer u.mu.Unlock()
		for {
			n, err = unix.Read(int(fd), buf)
			if err != unix.EINTR {
				break
			}
		}
		if n > 0 {
			u.total += uint64(n)
		}
		return err != unix.EAGAIN
	})
	if rerr != nil {
		return 0, rerr
	}
	return max(n, 0), err
}

// enough says that only what is in the pipe now still matters.
func (u *pump) enough() {
	full := false
	u.raw.Control(func(fd uintptr) {
		u.mu.Lock()
		defer u.mu.Unlock()
		if n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ); err == nil {
			u.limit, u.last = true, u.total+uint64(n)
			full = u.inRng >= u.last
		}
	})
	if full {
		u.finish()
	}
}

func (u *pump) finish() { u.once.Do(func() { close(u.drained) }) }
