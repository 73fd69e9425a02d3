package vmapi

import (
	"strings"
	"time"
)

const (
	maxHistory  = 1000    // commands that are kept of a machine
	maxCommand  = 1 << 10 // bytes of each that are
	maxRecalled = 4 << 10 // bytes of each output
)

// history is what ran in a machine, the oldest first.
type history struct{ entries []*HistoryEntry }

// add notes a command that begins.
func (h *history) add(e *HistoryEntry) {
	e.Command = clip(e.Command, maxCommand)
	if len(h.entries) == maxHistory {
		h.entries = h.entries[1:]
	}
	h.entries = append(h.entries, e)
}

// list returns the newest entries first, and how many there are.
func (h *history) list(limit int, failures bool) ([]HistoryEntry, int) {
	out, total := []HistoryEntry{}, 0
	for i := len(h.entries) - 1; i >= 0; i-- {
		e := h.entries[i]
		if failures && e.Success {
			continue
		}
		total++
		if len(out) < limit {
			out = append(out, *e)
		}
	}
	return out, total
}

// note writes down how a command ended.
func (m *machine) note(e *HistoryEntry, code *int, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e.ExitCode, e.Success, e.DurationMS = code, code != nil && *code == 0, ms(took)
}

// clip keeps the beginning of a text, tail its end.
func clip(s string, n int) string {
	return strings.ToValidUTF8(s[:min(n, len(s))], "�")
}

func tail(s string, n int) string {
	return strings.ToValidUTF8(s[max(0, len(s)-n):], "�")
}
