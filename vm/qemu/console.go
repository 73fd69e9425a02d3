package qemu

import (
	"strings"
	"sync"
	"unicode"
)

const maxConsole = 16 << 10

// tail keeps the last bytes that were written to it. It is safe for concurrent use.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

// Write never fails: what is too old is dropped.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(p) > maxConsole {
		t.buf = append(t.buf[:0], p[len(p)-maxConsole:]...)
		return len(p), nil
	}
	if over := len(t.buf) + len(p) - maxConsole; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	t.buf = append(t.buf, p...)
	return len(p), nil
}

// String returns what was kept without anything that a terminal would obey.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) && r != unicode.ReplacementChar {
			return r
		}
		return -1
	}, string(t.buf))
}
