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
	job    int64 // bytes passed
	steps  map[int]*gauge
	whole  *ring  // of the job beyond its limit; nil: not yet
	last   int    // step of the line before
	now    *gauge // its own; nil: there was none
}

// gauge is one step's.
type gauge struct {
	bytes int64 // passed
	ring  *ring // of what is beyond its limit; nil: not yet
}

func newMeter(l Limits) meter {
	return meter{limits: l, steps: make(map[int]*gauge)}
}

// pass hands l, and whatever has to come before it, to add, unless it is beyond a limit.
func (m *meter) pass(l tgr.LogLine, add func(tgr.LogLine)) {
	if m.whole == nil && l.Step > m.last {
		m.drain(add)
	}
	if m.now == nil || l.Step != m.last {
		m.turn(l.Step)
	}
	size := int64(len(l.Text)) + 1
	switch {
	case m.whole != nil:
		m.whole.put(l, m.limits.Ring)
	case m.job+size > m.limits.Job:
		m.whole = &ring{}
		add(mark(l.Time, l.Step, "the log of this job is truncated here: it is longer than %d bytes", m.limits.Job))
		m.whole.put(l, m.limits.Ring)
	case m.now.ring != nil:
		m.now.ring.put(l, m.limits.Ring)
	case m.now.bytes+size > m.limits.Step:
		m.now.ring = &ring{}
		add(mark(l.Time, l.Step, "the log of this step is truncated here: it is longer than %d bytes", m.limits.Step))
		m.now.ring.put(l, m.limits.Ring)
	default:
		m.job += size
		m.now.bytes += size
		add(l)
	}
}

// turn makes a step the one that lines come from.
func (m *meter) turn(step int) {
	m.last, m.now = step, m.steps[step]
	if m.now == nil {
		m.now = &gauge{}
		m.steps[step] = m.now
	}
}

// drain writes what the ring of the step holds that lines came from last. The step stays beyond its limit.
func (m *meter) drain(add func(tgr.LogLine)) {
	if m.now != nil && m.now.ring != nil {
		m.job += m.now.ring.bytes
		m.now.ring.drain(add)
		m.now.ring = &ring{}
	}
}

// end writes what the rings hold.
func (m *meter) end(add func(tgr.LogLine)) {
	for _, step := range slices.Sorted(maps.Keys(m.steps)) {
		if r := m.steps[step].ring; r != nil {
			r.drain(add)
			m.steps[step].ring = nil
		}
	}
	if m.whole != nil {
		m.whole.drain(add)
	}
	m.whole = nil
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
