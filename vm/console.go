package vm

import (
	"strings"
	"sync"
	"unicode"
)

const maxConsole = 16 << 10 // bytes

// Console keeps the last 16 KiB that a machine wrote, for Info and BootError. Its zero value is ready, and it is safe
// for concurrent use.
type Console struct {
	mu  sync.Mutex
	buf []byte
}

// Write never fails: what is too old is dropped.
func (t *Console) Write(p []byte) (int, error) {
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
func (t *Console) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) && r != unicode.ReplacementChar {
			return r
		}
		return -1
	}, string(t.buf))
}
