package vm

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// SessionState is where a session stands: what is done with a machine, from the moment somebody asks for it.
type SessionState string

// The states, which the original system named, and never reached but for a few.
const (
	SessionInitializing SessionState = "initializing" // its machine comes up
	SessionActive       SessionState = "active"       // nothing runs
	SessionExecuting    SessionState = "executing"    // at least one command runs
	SessionPaused       SessionState = "paused"       // the machine stands still
	SessionRolledBack   SessionState = "rolled_back"  // the machine was put back to a snapshot, and nothing ran since
	SessionCompleted    SessionState = "completed"    // what it was for succeeded; the machine is still there
	SessionFailed       SessionState = "failed"       // what it was for failed; the machine may still be there
	SessionTerminating  SessionState = "terminating"  // the machine is being freed: the end
)

// SessionEvent is what happens to a session.
type SessionEvent string

// The events.
const (
	SessionReady    SessionEvent = "ready"     // the agent answered
	SessionBegin    SessionEvent = "begin"     // a command begins
	SessionEnd      SessionEvent = "end"       // the last command that ran has ended
	SessionPause    SessionEvent = "pause"     //
	SessionResume   SessionEvent = "resume"    //
	SessionRollBack SessionEvent = "roll_back" // to a snapshot
	SessionComplete SessionEvent = "complete"  // somebody says that it succeeded
	SessionFail     SessionEvent = "fail"      // somebody says that it failed, or the machine died
	SessionClose    SessionEvent = "close"     // the machine is to be freed
)

// SessionTransition is one arrow of the drawing.
type SessionTransition struct {
	From  SessionState
	Event SessionEvent
	To    SessionState
}

// SessionTransitions are all that can happen. What is not among them is refused.
func SessionTransitions() []SessionTransition {
	return []SessionTransition{
		{SessionInitializing, SessionReady, SessionActive},
		{SessionInitializing, SessionFail, SessionFailed},
		{SessionInitializing, SessionClose, SessionTerminating},

		{SessionActive, SessionBegin, SessionExecuting},
		{SessionActive, SessionPause, SessionPaused},
		{SessionActive, SessionRollBack, SessionRolledBack},
		{SessionActive, SessionComplete, SessionCompleted},
		{SessionActive, SessionFail, SessionFailed},
		{SessionActive, SessionClose, SessionTerminating},

		{SessionExecuting, SessionEnd, SessionActive},
		{SessionExecuting, SessionPause, SessionPaused},
		{SessionExecuting, SessionRollBack, SessionRolledBack},
		{SessionExecuting, SessionFail, SessionFailed},
		{SessionExecuting, SessionClose, SessionTerminating},

		{SessionPaused, SessionResume, SessionActive},
		{SessionPaused, SessionRollBack, SessionRolledBack},
		{SessionPaused, SessionFail, SessionFailed},
		{SessionPaused, SessionClose, SessionTerminating},

		{SessionRolledBack, SessionBegin, SessionExecuting},
		{SessionRolledBack, SessionPause, SessionPaused},
		{SessionRolledBack, SessionRollBack, SessionRolledBack},
		{SessionRolledBack, SessionComplete, SessionCompleted},
		{SessionRolledBack, SessionFail, SessionFailed},
		{SessionRolledBack, SessionClose, SessionTerminating},

		{SessionCompleted, SessionBegin, SessionCompleted}, // somebody looks around
		{SessionCompleted, SessionRollBack, SessionRolledBack},
		{SessionCompleted, SessionClose, SessionTerminating},

		{SessionFailed, SessionBegin, SessionFailed}, // the same
		{SessionFailed, SessionRollBack, SessionRolledBack},
		{SessionFailed, SessionClose, SessionTerminating},
	}
}

// After is the state that follows when e happens, if it can.
func (s SessionState) After(e SessionEvent) (SessionState, bool) {
	for _, t := range SessionTransitions() {
		if t.From == s && t.Event == e {
			return t.To, true
		}
	}
	return s, false
}

// Errors of sessions; those that Open and Session's methods return match them with errors.Is.
var (
	// ErrSessions is a session too many.
	ErrSessions = errors.New("as many sessions are open as may be")
	// ErrSessionState is an event that the state of a session does not allow.
	ErrSessionState = errors.New("the session's state does not allow it")
)

// SessionConfig bounds sessions. The zero value means the defaults.
type SessionConfig struct {
	Max   int           // open at once; 0: no limit
	Limit time.Duration // of a whole session; 0: 24 hours
	Idle  time.Duration // without a command, and without a lease; 0: 1 hour
	// Expired is called, from a goroutine of its own and once per session, when its time is over. It is to have the
	// session closed and freed.
	Expired func(s *Session, reason string)
}

// Sessions are the open sessions of one host. It is safe for concurrent use.
type Sessions struct {
	cfg SessionConfig

	mu    sync.Mutex
	open  map[string]*Session
	stats SessionStats // what is counted; the rest is looked up
}

// SessionStats is what Sessions have seen.
type SessionStats struct {
	Total      int `json:"total"`     // ever opened
	Open       int `json:"open"`      // now
	Executing  int `json:"executing"` // of those open
	Paused     int `json:"paused"`    // of those open
	Completed  int `json:"completed"` // ever said to have succeeded
	Failed     int `json:"failed"`    // ever failed
	RolledBack int `json:"rolled_back"`
	Snapshots  int `json:"snapshots"` // ever taken
	Expired    int `json:"expired"`   // ended by their time limits
	Commands   int `json:"commands"`  // ever begun
}

// NewSessions returns an empty set.
func NewSessions(cfg SessionConfig) *Sessions {
	if cfg.Limit <= 0 {
		cfg.Limit = 24 * time.Hour
	}
	if cfg.Idle <= 0 {
		cfg.Idle = time.Hour
	}
	return &Sessions{cfg: cfg, open: map[string]*Session{}}
}

// Open begins a session with an id that no other has. It fails with ErrSessions where Max are open.
func (a *Sessions) Open() (*Session, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cfg.Max > 0 && len(a.open) >= a.cfg.Max {
		return nil, fmt.Errorf("%w: %d", ErrSessions, a.cfg.Max)
	}
	now := time.Now()
	s := &Session{all: a, id: strings.ToLower(rand.Text()), state: SessionInitializing, began: now, last: now}
	a.open[s.id] = s
	a.stats.Total++
	s.arm()
	return s, nil
}

// Stats counts.
func (a *Sessions) Stats() SessionStats {
	a.mu.Lock()
	defer a.mu.Unlock()
	st := a.stats
	st.Open = len(a.open)
	for _, s := range a.open {
		switch s.state {
		case SessionExecuting:
			st.Executing++
		case SessionPaused:
			st.Paused++
		}
	}
	return st
}

// Session is one use of one machine. Its methods are safe for concurrent use.
type Session struct {
	all *Sessions // whose lock guards all that follows
	id  string

	state     SessionState
	began     time.Time
	last      time.Time // when something last happened
	lease     time.Time // nobody ends the session before, and it ends then; zero: there is none
	running   int       // commands
	commands  int
	snapshots int
	expired   bool
	timer     *time.Timer
}

// SessionInfo describes a session at one moment.
type SessionInfo struct {
	ID        string       `json:"id"`
	State     SessionState `json:"state"`
	Began     time.Time    `json:"began"`
	Last      time.Time    `json:"last_activity"`
	Ends      time.Time    `json:"ends"` // by its limits, if nothing happens before
	Commands  int          `json:"commands"`
	Snapshots int          `json:"snapshots"`
}

// ID is the session's own.
func (s *Session) ID() string { return s.id }

// Info describes the session.
func (s *Session) Info() SessionInfo {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	ends, _ := s.ends()
	return SessionInfo{ID: s.id, State: s.state, Began: s.began, Last: s.last, Ends: ends, Commands: s.commands, Snapshots: s.snapshots}
}

// Apply makes an event happen, other than a command's: those are Begin's. It fails with ErrSessionState.
func (s *Session) Apply(e SessionEvent) error {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	if err := s.apply(e); err != nil {
		return err
	}
	switch e {
	case SessionComplete:
		s.all.stats.Completed++
	case SessionFail:
		s.all.stats.Failed++
	case SessionRollBack:
		s.all.stats.RolledBack++
	case SessionResume:
		if s.running > 0 {
			return s.apply(SessionBegin)
		}
	}
	return nil
}

// Free forgets the session: its machine is gone. Until then it counts.
func (s *Session) Free() {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	delete(s.all.open, s.id)
	s.state = SessionTerminating
	s.arm()
}

// apply is called with the lock held.
func (s *Session) apply(e SessionEvent) error {
	to, ok := s.state.After(e)
	if !ok {
		return fmt.Errorf("%s while %s: %w", e, s.state, ErrSessionState)
	}
	s.state, s.last = to, time.Now()
	s.arm()
	return nil
}

// Begin notes that a command begins. The caller calls the function that it returns once, when the command has ended.
func (s *Session) Begin() (end func(), err error) {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	if s.state != SessionExecuting { // where one more changes nothing
		if err := s.apply(SessionBegin); err != nil {
			return nil, err
		}
	}
	s.last = time.Now()
	s.running++
	s.commands++
	s.all.stats.Commands++
	return sync.OnceFunc(s.end), nil
}

func (s *Session) end() {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	s.running--
	s.last = time.Now()
	if s.running == 0 && s.state == SessionExecuting {
		s.state, _ = s.state.After(SessionEnd)
	}
	s.arm()
}

// Snapshot notes that one was taken.
func (s *Session) Snapshot() {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	s.snapshots++
	s.all.stats.Snapshots++
}

// Lease promises the session to somebody for d from now: no idle time ends it before, and the end of the lease does.
// A d of 0 ends the promise. It returns when the session ends now, by whichever limit comes first.
func (s *Session) Lease(d time.Duration) time.Time {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	s.lease = time.Time{}
	s.last = time.Now()
	if d > 0 {
		s.lease = s.last.Add(d)
	}
	s.arm()
	ends, _ := s.ends()
	return ends
}

// ends is when the session's time is over if nothing happens, and why.
func (s *Session) ends() (time.Time, string) {
	limit := s.began.Add(s.all.cfg.Limit)
	ends, reason := limit, fmt.Sprintf("a session may last %v", s.all.cfg.Limit)
	switch {
	case !s.lease.IsZero():
		if s.lease.Before(limit) {
			ends, reason = s.lease, "its lease was not renewed"
		}
	case s.running == 0 && s.state != SessionInitializing:
		if idle := s.last.Add(s.all.cfg.Idle); idle.Before(limit) {
			ends, reason = idle, fmt.Sprintf("nothing ran for %v", s.all.cfg.Idle)
		}
	}
	return ends, reason
}

// arm has the timer ring at the session's end. It is called with the lock held.
func (s *Session) arm() {
	if s.timer != nil {
		s.timer.Stop()
	}
	if s.state == SessionTerminating || s.expired {
		return
	}
	ends, _ := s.ends()
	s.timer = time.AfterFunc(time.Until(ends), s.ring)
}

// ring ends the session if its time is really over: the timer may have rung while it was changed.
func (s *Session) ring() {
	s.all.mu.Lock()
	ends, reason := s.ends()
	if s.expired || s.state == SessionTerminating || time.Now().Before(ends) {
		s.arm()
		s.all.mu.Unlock()
		return
	}
	s.expired = true
	s.all.stats.Expired++
	s.all.mu.Unlock()
	if s.all.cfg.Expired != nil {
		s.all.cfg.Expired(s, reason)
	}
}
