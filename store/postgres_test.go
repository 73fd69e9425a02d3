package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/store"
	"github.com/terraphim/tgr/store/storetest"
)

// Text that PostgreSQL does not take is stored as near to it as it gets, and finds what was stored.
func TestHostileText(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		d := delivery("nul")
		d.Event.Ref = "refs/heads/a\x00b\xff"
		if _, _, err := e.Accept(e.ctx, d); err != nil {
			t.Fatal(err)
		}
		runs, err := e.Runs(e.ctx, store.RunFilter{Branch: "a\x00b\xff"})
		if err != nil || len(runs) != 1 {
			t.Errorf("%d runs, %v; want 1", len(runs), err)
		}
		l := e.claim(tgr.PlanJob)
		e.must(e.Finish(e.ctx, l.Job.ID, l.Token, store.JobResult{Conclusion: tgr.Failure, Reason: "because\x00 of \xf0\x28"}))
		job, err := e.PlanJob(e.ctx, l.Run.ID)
		if err != nil || !strings.HasPrefix(job.Reason, "because") || !strings.Contains(job.Reason, " of ") {
			t.Errorf("the reason is %q, %v", job.Reason, err)
		}
	})
}

// Servers that start at once bring the schema up to date once.
func TestOpenAtOnce(t *testing.T) {
	at := databases["postgres"](t)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			s, err := store.Open(t.Context(), at)
			if err != nil {
				t.Error(err)
				return
			}
			if err := errors.Join(s.Ping(t.Context()), s.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// What cannot be opened is said, without the password.
func TestOpenRefusesURLs(t *testing.T) {
	for url, want := range map[string]tgr.Code{
		"postgres://u:s3cret@127.0.0.1:1/db":       tgr.Unavailable,
		"postgres://u:s3cret@/db?host=/nonesuch":   tgr.Unavailable,
		"postgres://u:s3cret@h:port/db":            tgr.Invalid,
		"host=h password=s3cret sslmode=sometimes": tgr.Invalid,
	} {
		_, err := store.Open(t.Context(), store.Config{URL: url})
		if tgr.CodeOf(err) != want || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v (%s); want %s, without the password", url, err, tgr.CodeOf(err), want)
		}
	}
}

// While the database is away every call fails as it should, and none of them hangs; when it is back, so are we, with all
// that was acknowledged.
func TestDatabaseAway(t *testing.T) {
	server := storetest.New(t)
	e := newEnv(t)
	e.where.URL = must(server.Database(t.Context()))
	e.open(store.Config{})
	var acked []string
	var mu sync.Mutex
	work, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for caller := range 4 {
		all.Go(func() {
			for i := 0; work.Err() == nil; i++ {
				id := fmt.Sprint(caller, "-", i)
				_, _, err := e.Accept(context.Background(), delivery(id))
				mu.Lock()
				if err == nil {
					acked = append(acked, id)
				} else if tgr.CodeOf(err) != tgr.Unavailable {
					t.Errorf("a write failed with %v (%s), want %s", err, tgr.CodeOf(err), tgr.Unavailable)
				}
				mu.Unlock()
			}
		})
	}
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(acked) }
	await(t, "deliveries", func() bool { return count() > 50 })
	server.Kill()
	if err := e.Ping(e.ctx); tgr.CodeOf(err) != tgr.Unavailable {
		t.Errorf("Ping = %v, want %s", err, tgr.Unavailable)
	}
	if _, err := e.Runs(e.ctx, store.RunFilter{}); tgr.CodeOf(err) != tgr.Unavailable {
		t.Errorf("Runs = %v, want %s", err, tgr.Unavailable)
	}
	if err := server.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := count()
	await(t, "deliveries after it", func() bool { return count() > before+50 })
	stop()
	all.Wait()
	for _, id := range acked {
		if _, err := e.Delivery(e.ctx, tgr.DeliveryID(id)); err != nil {
			t.Errorf("of %d acknowledged deliveries %s is lost: %v", len(acked), id, err)
		}
	}
}

func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for limit := time.Now().Add(time.Minute); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("no %s", what)
		}
	}
}

// A server that was stopped in the middle of a transaction keeps the others from writing for no longer than the database
// lets it.
func TestStoppedWriter(t *testing.T) {
	if url := os.Getenv("STORE_TEST_STOP"); url != "" {
		stopWriting(url)
	}
	at := databases["postgres"](t)
	s := open(t, at)
	cmd := exec.Command(os.Args[0], "-test.run=^TestStoppedWriter$")
	cmd.Env = append(os.Environ(), "STORE_TEST_STOP="+at.URL+" idle_in_transaction_session_timeout=700")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	stopped := func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		return err == nil && strings.Contains(string(b), ") T ")
	}
	await(t, "writer that stopped", stopped)
	if err := s.Ping(t.Context()); err != nil {
		t.Errorf("while another server is stopped: %v", err)
	}
}

// stopWriting stops this process, as ctrl-Z does, while it writes.
func stopWriting(url string) {
	s := must(store.Open(context.Background(), store.Config{URL: url, Reports: func(tgr.Run, []tgr.Job) []store.Outgoing {
		syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		syscall.Pause() // the signal is on its way
		return nil
	}}))
	must2(s.Accept(context.Background(), delivery("stopped")))
	os.Exit(0)
}

// A server has the database to itself. One whose connection broke gets it again, unless another has it by then.
func TestAlone(t *testing.T) {
	at := databases["postgres"](t)
	at.Waiting = func() { t.Error("the first server waits") }
	first := open(t, at)
	waits := make(chan struct{})
	second := make(chan *store.Store)
	go func() {
		at := at
		at.Waiting = func() { close(waits) }
		s, err := store.Open(t.Context(), at)
		if err != nil {
			t.Error(err)
		}
		second <- s
	}()
	<-waits
	admin, err := sql.Open("pgx", at.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	disconnect := func() {
		t.Helper()
		var n int
		err := admin.QueryRow(`SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'tgr alone'
			AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted) AND datname = current_database()`).Scan(&n)
		if err != nil || n != 1 {
			t.Fatalf("%d connections were ended, %v; want 1", n, err)
		}
	}
	kept := make(chan error, 1)
	// Nobody looks after the lock yet: the second server gets it, sooner or later.
	disconnect()
	s := <-second
	if err := first.Ping(t.Context()); tgr.CodeOf(err) != tgr.Conflict {
		t.Errorf("a write of a server that was taken over from: %v, want %s", err, tgr.Conflict)
	}
	go func() { kept <- first.Keep(t.Context()) }()
	if err := <-kept; tgr.CodeOf(err) != tgr.Conflict {
		t.Errorf("Keep of a server that lost the database to another = %v, want %s", err, tgr.Conflict)
	}
	// The second has nobody beside it: it gets it again, and keeps it until it is told to end.
	ctx, stop := context.WithCancel(t.Context())
	go func() { kept <- s.Keep(ctx) }()
	disconnect()
	await(t, "the lock again", func() bool {
		var n int
		err := admin.QueryRow("SELECT COUNT(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE locktype = 'advisory' AND granted AND application_name = 'tgr alone' AND datname = current_database()").Scan(&n)
		return err == nil && n == 1
	})
	if err := s.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-kept; err != nil {
		t.Errorf("Keep of a server that ends = %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := first.Ping(t.Context()); tgr.CodeOf(err) != tgr.Conflict {
		t.Errorf("a write of a server that was taken over from, when the other one has ended: %v, want %s", err, tgr.Conflict)
	}
}
