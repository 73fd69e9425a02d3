package llm

import (
	"sync"
	"time"
)

// The breaker's rules.
const (
	breakAfter  = 3 // failures in a row
	breakWindow = 10
	breakFor    = 30 * time.Second
	breakMost   = 10 * time.Minute
)

// breaker leaves a backend alone that fails too often: after three failures in a row, or more than five of the last ten.
// After a while one question is let through; if that fails too, the while doubles. Its zero value is closed; safe
// for concurrent use.
type breaker struct {
	mu     sync.Mutex
	last   []bool // of the last questions: failed
	row    int    // failures in a row
	open   time.Duration
	until  time.Time
	probe  bool // one question is on its way to find out
	reason string
}

// allow reports whether a question may be asked now, or why not. Whoever is allowed must call done or withdraw.
func (b *breaker) allow(now time.Time) *Fault {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.until.IsZero():
		return nil
	case now.Before(b.until):
		return &Fault{Reason: Breaker, Message: "left alone until " + b.until.UTC().Format(time.TimeOnly) + " UTC: " + b.reason, RetryAfter: b.until.Sub(now)}
	case b.probe:
		return &Fault{Reason: Breaker, Message: "one question is on its way to find out whether it works again"}
	}
	b.probe = true
	return nil
}

// withdraw says that a question which was allowed tells nothing: the caller has gone, or the answer was merely wrong.
func (b *breaker) withdraw() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probe = false
}

// done records how a question ended. What a backend refuses it will refuse again: it is left alone at once.
func (b *breaker) done(now time.Time, f *Fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probe = false
	failed := f != nil
	if b.last = append(b.last, failed); len(b.last) > breakWindow {
		b.last = b.last[1:]
	}
	if !failed {
		b.row, b.open, b.until = 0, 0, time.Time{}
		return
	}
	b.row++
	bad := 0
	for _, x := range b.last {
		if x {
			bad++
		}
	}
	wait := f.RetryAfter
	reopened := !b.until.IsZero()
	if reopened || b.row >= breakAfter || len(b.last) == breakWindow && bad > breakWindow/2 {
		b.open = min(max(breakFor, 2*b.open), breakMost)
		wait = max(wait, b.open)
		b.last, b.row = nil, 0
	}
	if f.Reason == Refused {
		wait = breakMost
	}
	if wait > 0 {
		b.until, b.reason = now.Add(wait), f.Message
	}
}

// speed is what a backend has been measured at. The zero value knows nothing. Safe for concurrent use.
type speed struct {
	mu            sync.Mutex
	read, write   float64 // tokens a second, moving averages
	load          time.Duration
	bytesPerToken float64
}

// learn takes in an answer.
func (s *speed) learn(a Answer, promptBytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mix := func(old, now float64) float64 {
		if old == 0 {
			return now
		}
		return 0.7*old + 0.3*now
	}
	// A prompt whose beginning was still in the backend's cache tells nothing about reading.
	if a.PromptTokens >= 32 && a.Prompt > time.Millisecond {
		s.read = mix(s.read, float64(a.PromptTokens)/a.Prompt.Seconds())
	}
	if a.OutputTokens >= 8 && a.Generate > time.Millisecond {
		s.write = mix(s.write, float64(a.OutputTokens)/a.Generate.Seconds())
	}
	if a.Load > 0 {
		s.load = max(a.Load, s.load/2)
	}
	if a.PromptTokens > 0 && promptBytes > 0 {
		s.bytesPerToken = mix(s.bytesPerToken, float64(promptBytes)/float64(a.PromptTokens))
	}
}

// shortest is the least time that a question gets, whatever was measured: hosts are busy at times.
const shortest = 10 * time.Second

// deadline is how long a question may take: half as much again as was measured, at most limit. ok is false where even
// the expected time is over the limit.
func (s *speed) deadline(promptBytes, output int, limit time.Duration) (d time.Duration, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.write == 0 {
		return limit, true // nothing is known: the first question measures
	}
	seconds := float64(output) / s.write
	if s.read > 0 {
		seconds += float64(promptBytes) / max(s.bytesPerToken, 1) / s.read
	}
	expect := s.load + time.Duration(seconds*float64(time.Second))
	if expect > limit {
		return 0, false
	}
	return min(limit, max(shortest, expect*3/2)), true
}
