package joblog

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/terraphim/tgr"
)

// meter lets lines pass up to the limits. Beyond them it says so once and keeps the latest in a ring, which
// follows when the step, or the job, has ended.
type meter struct {
	limits Limits
	job    int64         // bytes passed
	steps  map[int]int64 // bytes passed, by step
	rings  map[int]*ring // of the steps beyond their limit
	whole  *ring         // of the job beyond its limit; nil: not yet
	last   int           // step of the line before
}

func newMeter(l Limits) meter {
	return meter{limits: l, steps: make(map[int]int64), rings: make(map[int]*ring)}
}

// pass hands l, and whatever has to come before it, to add, unless it is beyond a limit.
func (m *meter) pass(l tgr.LogLine, add func(tgr.LogLine)) {
	if m.whole == nil && l.Step > m.last {
		m.drain(m.last, add)
	}
	m.last = l.Step
	size := int64(len(l.Text)) + 1
	switch {
	case m.whole != nil:
		m.whole.put(l, m.limits.Ring)
	case m.job+size > m.limits.Job:
		m.whole = &ring{}
		add(mark(l.Time, l.Step, "the log of this job is truncated here: it is longer than %d bytes", m.limits.Job))
		m.whole.put(l, m.limits.Ring)
	case m.rings[l.Step] != nil:
		m.rings[l.Step].put(l, m.limits.Ring)
	case m.steps[l.Step]+size > m.limits.Step:
		m.rings[l.Step] = &ring{}
		add(mark(l.Time, l.Step, "the log of this step is truncated here: it is longer than %d bytes", m.limits.Step))
		m.rings[l.Step].put(l, m.limits.Ring)
	default:
		m.job += size
		m.steps[l.Step] += size
		add(l)
	}
}

// drain writes what the ring of a step holds. The step stays beyond its limit.
func (m *meter) drain(step int, add func(tgr.LogLine)) {
	if r := m.rings[step]; r != nil {
		m.job += r.bytes
		r.drain(add)
		m.rings[step] = &ring{}
	}
}

// end writes what the rings hold.
func (m *meter) end(add func(tgr.LogLine)) {
	for _, step := range slices.Sorted(maps.Keys(m.rings)) {
		m.rings[step].drain(add)
	}
	if m.whole != nil {
		m.whole.drain(add)
	}
	m.rings, m.whole = nil, nil
}

// ring keeps the latest lines within a number of bytes.
type ring struct {
	lines   []tgr.LogLine
	bytes   int64
	dropped int64
}

func (r *ring) put(l tgr.LogLine, limit int64) {
	r.lines = append(r.lines, l)
	r.bytes += int64(len(l.Text)) + 1
	for r.bytes > limit && len(r.lines) > 1 {
		r.bytes -= int64(len(r.lines[0].Text)) + 1
		r.lines[0] = tgr.LogLine{}
		r.lines = r.lines[1:]
		r.dropped++
	}
}

func (r *ring) drain(add func(tgr.LogLine)) {
	if r.dropped > 0 {
		add(mark(r.lines[0].Time, r.lines[0].Step, "%d lines were left out here; the last ones follow", r.dropped))
	}
	for _, l := range r.lines {
		add(l)
	}
}

func mark(t time.Time, step int, format string, args ...any) tgr.LogLine {
	return tgr.LogLine{Time: t, Step: step, Text: "[tgr] " + fmt.Sprintf(format, args...)}
}
