package web

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/terraphim/tgr"
)

// live makes a store with a run in progress, of one job that has begun.
func live() *memory {
	m := newMemory()
	run := sampleRun()
	run.Status, run.Conclusion, run.Finished = tgr.InProgress, "", time.Time{}
	m.setRun(run)
	job := sampleJobs()[0]
	job.Status, job.Conclusion, job.Blame, job.Reason, job.Finished, job.Steps = tgr.InProgress, "", "", "", time.Time{}, nil
	m.setJob(job)
	return m
}

func (m *memory) finish(job tgr.JobID, c tgr.Conclusion) {
	m.update(func() {
		j := m.jobs[job]
		j.Status, j.Conclusion = tgr.Completed, c
		m.jobs[job] = j
	})
}

func text(n int) tgr.LogLine {
	return tgr.LogLine{Time: at(n), Step: 1, Text: "line " + strconv.Itoa(n)}
}

// subscribe opens a stream and returns a function that reads its next event; comments are events without a name.
func subscribe(t *testing.T, url string, header ...string) (next func() (Event, error), end func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	r, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode != 200 || answer.Header.Get("Content-Type") != "text/event-stream; charset=utf-8" {
		t.Fatalf("%s: %d %v", url, answer.StatusCode, answer.Header)
	}
	pull, stop := iter.Pull2(func(yield func(Event, error) bool) {
		err := readEvents(answer.Body, func(e Event) error {
			if !yield(e, nil) {
				return io.EOF
			}
			return nil
		})
		if err == nil {
			err = io.EOF
		}
		yield(Event{}, err)
	})
	end = sync.OnceFunc(func() { stop(); answer.Body.Close(); cancel() })
	t.Cleanup(end)
	return func() (Event, error) { e, err, _ := pull(); return e, err }, end
}

// named reads events up to the first with a name.
func named(t *testing.T, next func() (Event, error)) Event {
	t.Helper()
	for {
		e, err := next()
		if err != nil {
			t.Fatal(err)
		}
		if e.Name != "" {
			return e
		}
	}
}

func TestLogStreamFollowsAndEnds(t *testing.T) {
	s := newSite(t, live(), nil)
	next, _ := subscribe(t, s.url+"/api/jobs/70/log/stream?spans=1")
	s.append(70, 1, tgr.LogLine{Time: at(1), Text: "\x1b[32mone\x1b[0m\nevent: done\ndata: {}"})
	e := named(t, next)
	var l LogLine
	if err := json.Unmarshal(e.Data, &l); err != nil || e.ID != "1" || e.Name != "line" {
		t.Fatalf("%+v: %v", e, err)
	}
	if diff := cmp.Diff([]Span{{"one", "f2"}, {"event: donedata: {}", ""}}, l.Spans); diff != "" {
		t.Errorf("spans: %s", diff)
	}
	s.append(70, 1, text(2))
	if e := named(t, next); e.ID != "2" {
		t.Errorf("%+v", e)
	}
	s.closeLog(70, 1)
	s.finish(70, tgr.Failure)
	e = named(t, next)
	var end StreamEnd
	if err := json.Unmarshal(e.Data, &end); err != nil || e.Name != "done" || end.Conclusion != tgr.Failure {
		t.Errorf("%+v: %v", e, err)
	}
	if _, err := next(); err != io.EOF {
		t.Errorf("after done: %v", err)
	}
}

func TestLogStreamOfAnOpenLogEndsWithItsJob(t *testing.T) {
	s := newSite(t, live(), nil) // the log is never closed: its writer died
	s.append(70, 1, text(1))
	s.finish(70, tgr.Cancelled)
	end, err := s.client.Follow(t.Context(), 70, 0, func(LogLine) error { return nil })
	if err != nil || end.Conclusion != tgr.Cancelled {
		t.Errorf("%+v, %v", end, err)
	}
}

func TestLogStreamResumes(t *testing.T) {
	s := newSite(t, live(), nil)
	for n := range 5 {
		s.append(70, 1, text(n+1))
	}
	for _, tc := range []struct{ query, last, want string }{
		{"", "", "1"}, {"", "3", "4"}, {"?from=2", "", "2"}, {"?from=2", "4", "5"}, {"", "2:3", "1"},
	} {
		var header []string
		if tc.last != "" {
			header = []string{"Last-Event-ID", tc.last}
		}
		next, end := subscribe(t, s.url+"/api/jobs/70/log/stream"+tc.query, header...)
		if e := named(t, next); e.ID != tc.want {
			t.Errorf("%+v: begins with %s", tc, e.ID)
		}
		end()
	}
	for _, bad := range []string{"x", "-1", "0", "1:", ":1", "1:2:3"} {
		if answer, body := ask(t, "GET", s.url+"/api/jobs/70/log/stream", "", "Last-Event-ID", bad); answer.StatusCode != 400 {
			t.Errorf("Last-Event-ID %q: %d %s", bad, answer.StatusCode, body)
		}
	}
}

// cutter is a proxy that cuts its connections after a number of bytes, which differs from one to the next.
func cutter(t *testing.T, to string) (url string, cuts *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cuts = &atomic.Int64{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer in.Close()
				out, err := net.Dial("tcp", strings.TrimPrefix(to, "http://"))
				if err != nil {
					return
				}
				defer out.Close()
				go func() { io.Copy(out, in); out.Close() }()
				n := cuts.Add(1)
				io.CopyN(in, out, 900+n*373%1500) // headers are about 600
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return "http://" + l.Addr().String(), cuts
}

// TestFollowSurvivesCuts kills the connection again and again while lines are being written, and gets each once.
func TestFollowSurvivesCuts(t *testing.T) {
	s := newSite(t, live(), nil)
	proxy, cuts := cutter(t, s.url)
	c, err := NewClient(proxy, "")
	if err != nil {
		t.Fatal(err)
	}
	c.again = time.Millisecond
	c.http.Transport = &http.Transport{DisableKeepAlives: true}
	const lines = 300
	var writer sync.WaitGroup
	writer.Go(func() {
		for n := range lines {
			s.append(70, 1, text(n+1))
		}
		s.closeLog(70, 1)
		s.finish(70, tgr.Success)
	})
	var got []string
	end, err := c.Follow(t.Context(), 70, 0, func(l LogLine) error {
		if l.Line != len(got)+1 {
			return fmt.Errorf("line %d after %d lines", l.Line, len(got))
		}
		got = append(got, l.Text)
		return nil
	})
	writer.Wait()
	if err != nil || end.Conclusion != tgr.Success || len(got) != lines || got[lines-1] != "line 300" {
		t.Errorf("%d lines, %+v, %v", len(got), end, err)
	}
	if cuts.Load() < 10 {
		t.Errorf("only %d connections: nothing was cut", cuts.Load())
	}
}

func TestLogStreamOfAJobThatIsTriedAgain(t *testing.T) {
	s := newSite(t, live(), nil)
	s.append(70, 1, text(1), text(2))
	var got []string
	again := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		<-again
		s.closeLog(70, 1)
		s.update(func() {
			j := s.jobs[70]
			j.Tries, j.Status = 2, tgr.InProgress
			s.jobs[70] = j
		})
		s.append(70, 2, text(11), text(12), text(13))
		s.closeLog(70, 2)
		s.finish(70, tgr.Success)
	})
	end, err := s.client.Follow(t.Context(), 70, 0, func(l LogLine) error {
		if got = append(got, fmt.Sprint(l.Try, ":", l.Line, " ", l.Text)); len(got) == 2 {
			close(again)
		}
		return nil
	})
	writer.Wait()
	want := []string{"1:1 line 1", "1:2 line 2", "2:1 line 11", "2:2 line 12", "2:3 line 13"}
	if diff := cmp.Diff(want, got); err != nil || diff != "" || end.Conclusion != tgr.Success {
		t.Errorf("%+v, %v, -want +got\n%s", end, err, diff)
	}
	next, _ := subscribe(t, s.url+"/api/jobs/70/log/stream", "Last-Event-ID", "2:2")
	if e := named(t, next); e.ID != "2:3" {
		t.Errorf("resumed with %+v", e)
	}
	next, _ = subscribe(t, s.url+"/api/jobs/70/log/stream", "Last-Event-ID", "2") // of the first try
	if e := named(t, next); e.ID != "2:1" {
		t.Errorf("resumed with %+v", e)
	}
}

func TestStreamHeartbeatOutlivesReadAndWriteTimeout(t *testing.T) {
	m := live()
	s := &site{memory: m}
	var err error
	if s.server, err = New(Config{Runs: m, Logs: m, Control: m, Heartbeat: 20 * time.Millisecond, Poll: time.Hour}); err != nil {
		t.Fatal(err)
	}
	s.server.limits.read, s.server.limits.write = 100*time.Millisecond, 100*time.Millisecond
	s.serve(t, "")
	for _, path := range []string{"/api/jobs/70/log/stream", "/api/runs/7/events"} {
		next, end := subscribe(t, s.url+path)
		start, beats := time.Now(), 0
		for time.Since(start) < 400*time.Millisecond {
			e, err := next()
			if err != nil {
				t.Fatalf("%s: %v after %s", path, err, time.Since(start))
			}
			if e.Name == "" {
				beats++
			}
		}
		if beats < 3 {
			t.Errorf("%s: %d heartbeats", path, beats)
		}
		end()
	}
}

func TestRunEvents(t *testing.T) {
	for name, change := range map[string]func(*Config){"notified": func(c *Config) { c.Poll = time.Hour }, "polled": func(c *Config) { c.Changed = nil }} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, live(), change)
			next, _ := subscribe(t, s.url+"/api/runs/7/events")
			for _, want := range []string{"run", "job"} {
				if e := named(t, next); e.Name != want {
					t.Fatalf("%s, want %s", e.Name, want)
				}
			}
			s.update(func() {
				j := s.jobs[70]
				j.Steps = []tgr.Step{{Number: 1, Name: "Test", Status: tgr.InProgress}}
				s.jobs[70] = j
			})
			e := named(t, next)
			var step StepState
			if err := json.Unmarshal(e.Data, &step); err != nil || e.Name != "step" || step.Job != 70 || step.Name != "Test" {
				t.Fatalf("%s %s: %v", e.Name, e.Data, err)
			}
			s.finish(70, tgr.Failure)
			if e := named(t, next); e.Name != "job" || !strings.Contains(string(e.Data), `"failure"`) || strings.Contains(string(e.Data), `"steps"`) {
				t.Fatalf("%s %s", e.Name, e.Data)
			}
			s.setRun(sampleRun())
			if e := named(t, next); e.Name != "run" {
				t.Fatalf("%s", e.Name)
			}
			if e := named(t, next); e.Name != "done" || !strings.Contains(string(e.Data), `"failure"`) {
				t.Fatalf("%s %s", e.Name, e.Data)
			}
			if _, err := next(); err != io.EOF {
				t.Errorf("after done: %v", err)
			}
		})
	}
}

func TestWatchEndsWithTheRun(t *testing.T) {
	s := newSite(t, newMemory().fill(), nil)
	count := map[string]int{}
	end, err := s.client.Watch(t.Context(), 7, func(e Event) error { count[e.Name]++; return nil })
	if diff := cmp.Diff(map[string]int{"run": 1, "job": 2, "step": 2}, count); err != nil || diff != "" || end.Conclusion != tgr.Failure {
		t.Errorf("%+v, %v, %s", end, err, diff)
	}
}

func TestStreamsEndWithTheServer(t *testing.T) {
	s := newSite(t, live(), nil)
	log, _ := subscribe(t, s.url+"/api/jobs/70/log/stream")
	run, _ := subscribe(t, s.url+"/api/runs/7/events")
	named(t, run)
	named(t, run)
	start := time.Now()
	if err := s.stop(); err != nil {
		t.Errorf("Serve: %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("streams held the server for %s", took)
	}
	for _, next := range []func() (Event, error){log, run} {
		for {
			if e, err := next(); err == io.EOF {
				break
			} else if err != nil || e.Name == "done" {
				t.Errorf("%+v, %v", e, err)
				break
			}
		}
	}
}

func TestHeadOfAStreamIsRefused(t *testing.T) {
	s := newSite(t, live(), nil)
	for _, path := range []string{"/api/jobs/70/log/stream", "/api/runs/7/events"} {
		if answer, _ := ask(t, "HEAD", s.url+path, ""); answer.StatusCode != 405 {
			t.Errorf("%s: %d", path, answer.StatusCode)
		}
	}
}

func TestStreamsAreLimited(t *testing.T) {
	s := newSite(t, live(), func(c *Config) { c.MaxStreams = 1 })
	next, end := subscribe(t, s.url+"/api/runs/7/events")
	named(t, next)
	if answer, body := ask(t, "GET", s.url+"/api/runs/7/events", ""); answer.StatusCode != 429 || answer.Header.Get("Retry-After") == "" {
		t.Errorf("%d %s", answer.StatusCode, body)
	}
	end()
	for { // until the server has noticed
		answer, err := http.Get(s.url + "/api/runs/7/events")
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode == 200 {
			return
		}
	}
}

// failingLogs fails to follow.
type failingLogs struct{ LogReader }

func (failingLogs) Follow(context.Context, tgr.JobID, int, int) iter.Seq2[tgr.LogLine, error] {
	return func(yield func(tgr.LogLine, error) bool) { yield(tgr.LogLine{}, errDisk) }
}

func TestStreamThatFailsSaysSo(t *testing.T) {
	s := newSite(t, live(), func(c *Config) { c.Logs = failingLogs{c.Logs} })
	_, err := s.client.Follow(t.Context(), 70, 0, func(LogLine) error { return nil })
	if tgr.CodeOf(err) != tgr.Internal || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
}

func TestShutdownWaitsForRequestsAndCutsThemInTheEnd(t *testing.T) {
	for name, grace := range map[string]time.Duration{"patient": time.Minute, "impatient": time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			m := newMemory()
			entered, leave := make(chan struct{}), make(chan struct{})
			server, err := New(Config{Runs: m, Logs: m, Control: m, Shutdown: grace, Webhook: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				close(entered)
				<-leave
			})})
			if err != nil {
				t.Fatal(err)
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			served, asked := make(chan error, 1), make(chan error, 1)
			go func() { served <- server.Serve(ctx, l) }()
			go func() {
				_, err := http.Post("http://"+l.Addr().String()+"/webhook", "application/json", nil)
				asked <- err
			}()
			<-entered
			cancel()
			if grace < time.Second {
				if err := <-served; err == nil || <-asked == nil {
					t.Error("an endless request ended well")
				}
				close(leave)
				return
			}
			close(leave)
			if err := <-served; err != nil {
				t.Error(err)
			}
			if err := <-asked; err != nil {
				t.Errorf("a request in flight was cut: %v", err)
			}
		})
	}
}

func TestSlowSenderIsCut(t *testing.T) {
	m := newMemory()
	s := &site{memory: m}
	var err error
	if s.server, err = New(Config{Runs: m, Logs: m, Control: m}); err != nil {
		t.Fatal(err)
	}
	s.server.limits.header, s.server.limits.read = 100*time.Millisecond, 100*time.Millisecond
	s.serve(t, "")
	for name, sent := range map[string]string{
		"header": "GET / HTTP/1.1\r\nHost: localhost\r\n",
		"body":   "POST /api/dispatch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
	} {
		c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(c, sent)
		b, err := io.ReadAll(bufio.NewReader(c))
		if err != nil || strings.Contains(string(b), "HTTP/1.1 2") {
			t.Errorf("%s: %v %q", name, err, b)
		}
	}
}

// TestStreamsTogether has writers, followers and watchers at once; with -race it looks for races.
func TestStreamsTogether(t *testing.T) {
	s := newSite(t, live(), nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			lines := 0
			end, err := s.client.Follow(context.Background(), 70, 0, func(l LogLine) error { lines++; return nil })
			if err != nil || end.Conclusion != tgr.Success || lines != 200 {
				t.Errorf("Follow: %d lines, %+v, %v", lines, end, err)
			}
		})
		wg.Go(func() {
			if end, err := s.client.Watch(context.Background(), 7, func(Event) error { return nil }); err != nil || end.Conclusion != tgr.Success {
				t.Errorf("Watch: %+v, %v", end, err)
			}
		})
		wg.Go(func() {
			for range 20 {
				if _, err := s.client.Run(context.Background(), 7, 0); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for n := range 200 {
		s.append(70, 1, text(n+1))
	}
	s.closeLog(70, 1)
	s.finish(70, tgr.Success)
	run := sampleRun()
	run.Conclusion = tgr.Success
	s.setRun(run)
	wg.Wait()
}

func TestClientErrors(t *testing.T) {
	for _, base := range []string{"", "127.0.0.1:3000", "ftp://x", "http://", "http://u:p@x", "http://x?y", "://"} {
		if _, err := NewClient(base, ""); tgr.CodeOf(err) != tgr.Invalid {
			t.Errorf("NewClient(%q): %v", base, err)
		}
	}
	dead, err := NewClient("http://127.0.0.1:1", "")
	if err != nil {
		t.Fatal(err)
	}
	dead.again = time.Millisecond
	if _, err := dead.Runs(t.Context(), Filter{}); tgr.CodeOf(err) != tgr.Unavailable || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("no server: %v", err)
	}
	if _, err := dead.Follow(t.Context(), 1, 0, nil); tgr.CodeOf(err) != tgr.Unavailable {
		t.Errorf("no server to follow: %v", err)
	}
	for name, h := range map[string]http.HandlerFunc{
		"not ours": func(w http.ResponseWriter, r *http.Request) { http.Error(w, "<html>", http.StatusBadGateway) },
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://evil.example.com", http.StatusFound)
		},
		"not JSON":   func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") },
		"cut stream": func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "event: li") },
	} {
		other := httptest.NewServer(h)
		defer other.Close()
		c, err := NewClient(other.URL, "s3cret")
		if err != nil {
			t.Fatal(err)
		}
		c.again = time.Millisecond
		if _, err := c.Run(t.Context(), 1, 0); tgr.CodeOf(err) != tgr.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := c.Watch(t.Context(), 1, func(Event) error { return nil }); tgr.CodeOf(err) != tgr.Unavailable {
			t.Errorf("%s, stream: %v", name, err)
		}
	}
	s := newSite(t, newMemory().fill(), nil)
	mine := errors.New("mine")
	if _, err := s.client.Follow(t.Context(), 70, 0, func(LogLine) error { return mine }); !errors.Is(err, mine) {
		t.Errorf("the caller's error: %v", err)
	}
	if _, err := s.client.Follow(t.Context(), 1, 0, nil); tgr.CodeOf(err) != tgr.NotFound {
		t.Errorf("no job: %v", err)
	}
}

func FuzzReadEvents(f *testing.F) {
	f.Add([]byte("retry: 1000\n\nid: 1\nevent: line\ndata: {\"line\":1}\n\n: \n\nevent: done\ndata: {}\n\n"))
	f.Add([]byte("data\n\ndata: a\ndata: b\r\n\r\n:\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		readEvents(strings.NewReader(string(b)), func(e Event) error {
			if n++; len(e.Data) > len(b) {
				t.Errorf("event of %d bytes from %d", len(e.Data), len(b))
			}
			return nil
		})
		if n > len(b) {
			t.Errorf("%d events from %d bytes", n, len(b))
		}
	})
}
