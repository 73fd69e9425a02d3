package vm_test

import (
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr/vm"
)

// sessionTable is every state with every event. "-" is refused.
const sessionTable = `
              ready   begin      end     pause   resume  roll_back    complete   fail    close
initializing  active  -          -       -       -       -            -          failed  terminating
active        -       executing  -       paused  -       rolled_back  completed  failed  terminating
executing     -       -          active  paused  -       rolled_back  -          failed  terminating
paused        -       -          -       -       active  rolled_back  -          failed  terminating
rolled_back   -       executing  -       paused  -       rolled_back  completed  failed  terminating
completed     -       completed  -       -       -       rolled_back  -          -       terminating
failed        -       failed     -       -       -       rolled_back  -          -       terminating
terminating   -       -          -       -       -       -            -          -       -
`

func TestSessionTable(t *testing.T) {
	lines := strings.Split(strings.TrimSpace(sessionTable), "\n")
	events := strings.Fields(lines[0])
	reached := map[vm.SessionState]bool{vm.SessionInitializing: true}
	for _, line := range lines[1:] {
		row := strings.Fields(line)
		from := vm.SessionState(row[0])
		for i, event := range events {
			to, ok := from.After(vm.SessionEvent(event))
			want := row[i+1]
			switch {
			case want == "-" && (ok || to != from):
				t.Errorf("%s, %s: %s, want it refused", from, event, to)
			case want != "-" && (!ok || string(to) != want):
				t.Errorf("%s, %s: %s, want %s", from, event, to, want)
			}
		}
	}
	for range lines {
		for _, tr := range vm.SessionTransitions() {
			if reached[tr.From] {
				reached[tr.To] = true
			}
		}
	}
	if len(reached) != len(lines)-1 {
		t.Errorf("of %d states only these are reached: %v", len(lines)-1, reached)
	}
}

// The drawing in the documentation is the table.
func TestSessionDrawing(t *testing.T) {
	page, err := os.ReadFile("../docs/vm-api.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(page), "## Sessions")
	arrow := regexp.MustCompile(`(?m)^ +(\w+) --> (\w+): (\w+)$`)
	var got, want []string
	for _, m := range arrow.FindAllStringSubmatch(after, -1) {
		got = append(got, m[1]+" "+m[3]+" "+m[2])
	}
	for _, tr := range vm.SessionTransitions() {
		want = append(want, string(tr.From)+" "+string(tr.Event)+" "+string(tr.To))
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the table (-) and docs/vm-api.md (+) differ:\n%s", diff)
	}
}

func open(t *testing.T, all *vm.Sessions) *vm.Session {
	t.Helper()
	s, err := all.Open()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func apply(t *testing.T, s *vm.Session, events ...vm.SessionEvent) {
	t.Helper()
	for _, e := range events {
		if err := s.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
}

func begin(t *testing.T, s *vm.Session) (end func()) {
	t.Helper()
	end, err := s.Begin()
	if err != nil {
		t.Fatal(err)
	}
	return end
}

func TestSessionCommands(t *testing.T) {
	all := vm.NewSessions(vm.SessionConfig{})
	s := open(t, all)
	if _, err := s.Begin(); !errors.Is(err, vm.ErrSessionState) {
		t.Errorf("a command before the machine is there: %v", err)
	}
	apply(t, s, vm.SessionReady)
	one := begin(t, s)
	two := begin(t, s)
	one()
	one() // changes nothing
	if got := s.Info().State; got != vm.SessionExecuting {
		t.Errorf("with a command that runs: %s", got)
	}
	apply(t, s, vm.SessionPause)
	if _, err := s.Begin(); !errors.Is(err, vm.ErrSessionState) {
		t.Errorf("a command while paused: %v", err)
	}
	apply(t, s, vm.SessionResume)
	if got := s.Info().State; got != vm.SessionExecuting {
		t.Errorf("resumed with a command that runs: %s", got)
	}
	two()
	s.Snapshot()
	apply(t, s, vm.SessionRollBack, vm.SessionComplete)
	begin(t, s)() // somebody looks around
	if got := s.Info(); got.State != vm.SessionCompleted || got.Commands != 3 || got.Snapshots != 1 {
		t.Errorf("%+v", got)
	}
	failed := open(t, all)
	apply(t, failed, vm.SessionFail)
	want := vm.SessionStats{Total: 2, Open: 2, Completed: 1, Failed: 1, RolledBack: 1, Snapshots: 1, Commands: 3}
	if diff := cmp.Diff(want, all.Stats()); diff != "" {
		t.Errorf("statistics (-want +got):\n%s", diff)
	}
	apply(t, s, vm.SessionClose)
	if err := s.Apply(vm.SessionClose); !errors.Is(err, vm.ErrSessionState) {
		t.Errorf("closed twice: %v", err)
	}
}

func TestSessionsAreBounded(t *testing.T) {
	all := vm.NewSessions(vm.SessionConfig{Max: 10})
	var mu sync.Mutex
	ids := map[string]bool{}
	var refused int
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			s, err := all.Open()
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				ids[s.ID()] = true
			case errors.Is(err, vm.ErrSessions):
				refused++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(ids) != 10 || refused != 40 {
		t.Errorf("%d ids, %d refused; want 10 and 40", len(ids), refused)
	}
}

// Each limit ends a session, once, at its time, and says why.
func TestSessionLimits(t *testing.T) {
	for _, tt := range []struct {
		name   string
		use    func(t *testing.T, s *vm.Session)
		after  time.Duration // from the beginning
		reason string
	}{
		{"idle", func(t *testing.T, s *vm.Session) { apply(t, s, vm.SessionReady) }, time.Hour, "nothing ran for 1h0m0s"},
		{"idle after a command", func(t *testing.T, s *vm.Session) {
			apply(t, s, vm.SessionReady)
			end := begin(t, s)
			time.Sleep(90 * time.Minute) // which it may take
			end()
		}, 150 * time.Minute, "nothing ran for 1h0m0s"},
		{"a lease that was not renewed", func(t *testing.T, s *vm.Session) {
			apply(t, s, vm.SessionReady)
			begin(t, s)
			s.Lease(time.Minute)
		}, time.Minute, "its lease was not renewed"},
		{"a lease that was renewed", func(t *testing.T, s *vm.Session) {
			apply(t, s, vm.SessionReady)
			for range 20 {
				s.Lease(10 * time.Minute)
				time.Sleep(9 * time.Minute)
			}
		}, 181 * time.Minute, "its lease was not renewed"},
		{"a lease that was given up", func(t *testing.T, s *vm.Session) {
			apply(t, s, vm.SessionReady)
			s.Lease(time.Minute)
			s.Lease(0)
		}, time.Hour, "nothing ran for 1h0m0s"},
		{"never ready", func(*testing.T, *vm.Session) {}, 4 * time.Hour, "a session may last 4h0m0s"},
		{"a command that never ends", func(t *testing.T, s *vm.Session) {
			apply(t, s, vm.SessionReady)
			begin(t, s)
		}, 4 * time.Hour, "a session may last 4h0m0s"},
		{"a lease beyond the limit", func(t *testing.T, s *vm.Session) { s.Lease(100 * time.Hour) }, 4 * time.Hour, "a session may last 4h0m0s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				type end struct {
					after  time.Duration
					reason string
				}
				var ends []end
				began := time.Now()
				all := vm.NewSessions(vm.SessionConfig{Limit: 4 * time.Hour, Idle: time.Hour, Expired: func(s *vm.Session, reason string) {
					ends = append(ends, end{time.Since(began), reason})
					if err := s.Apply(vm.SessionClose); err != nil {
						t.Error(err)
					}
					s.Free()
				}})
				tt.use(t, open(t, all))
				time.Sleep(24 * time.Hour)
				synctest.Wait()
				if len(ends) != 1 || ends[0] != (end{tt.after, tt.reason}) {
					t.Errorf("ended %v, want once, after %v: %s", ends, tt.after, tt.reason)
				}
				if st := all.Stats(); st.Open != 0 || st.Expired != 1 {
					t.Errorf("%+v", st)
				}
			})
		})
	}
}
