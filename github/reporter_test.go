package github

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github/githubtest"
)

// desk is a reporter to a stand-in with one repository and one pull request.
type desk struct {
	srv  *githubtest.Server
	repo *githubtest.Repo
	pull *githubtest.Pull
	*Reporter
	log *bytes.Buffer
}

// newDesk reports as a GitHub App (app) or with a token.
func newDesk(t *testing.T, app bool) *desk {
	t.Helper()
	const token = "pat"
	sc := githubtest.Config{Token: token}
	cc := ClientConfig{Token: token}
	if app {
		sc = githubtest.Config{AppID: 42}
		cc = ClientConfig{AppID: 42, AppKey: appKey(t)}
	}
	d := &desk{log: &bytes.Buffer{}}
	d.srv, _ = hub(t, sc, "")
	d.repo = createRepo(t, d.srv, "ada/engine")
	commit(t, d.repo, "main", map[string]string{"a": "1"})
	commit(t, d.repo, "topic", map[string]string{"b": "1"})
	var err error
	if d.pull, err = d.repo.OpenPull(nil, "topic", "main"); err != nil {
		t.Fatal(err)
	}
	cc.BaseURL = d.srv.API()
	client, err := NewClient(cc)
	if err != nil {
		t.Fatal(err)
	}
	d.Reporter = NewReporter(client, slog.New(slog.NewTextHandler(d.log, nil)))
	return d
}

var appKeyOnce = sync.OnceValue(func() []byte {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
})

func appKey(t *testing.T) []byte {
	t.Helper()
	return appKeyOnce()
}

func (d *desk) send(t *testing.T, kind string, report any, remoteID string) string {
	t.Helper()
	id, _, err := d.try(t, kind, report, remoteID)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (d *desk) try(t *testing.T, kind string, report any, remoteID string) (string, time.Duration, error) {
	t.Helper()
	body, err := json.Marshal(report)
	if err != nil {
		t.Fatal(err)
	}
	return d.Deliver(t.Context(), kind, body, remoteID)
}

func (d *desk) check(status, conclusion string, annotations int) CheckReport {
	c := CheckReport{Repo: "ada/engine", SHA: d.pull.HeadSHA, Name: "CI / test (push)", ExternalID: "17", DetailsURL: "https://ci.example/17",
		Status: status, Conclusion: conclusion, Title: "title", Summary: "summary"}
	for i := range annotations {
		c.Annotations = append(c.Annotations, tgr.Annotation{Level: "error", Message: fmt.Sprint("a", i), File: "a.go", Line: i})
	}
	return c
}

func TestDeliverStatus(t *testing.T) {
	for _, app := range []bool{false, true} {
		d := newDesk(t, app)
		d.send(t, KindStatus, StatusReport{Repo: "ada/engine", SHA: d.pull.HeadSHA, State: "success", Context: "CI / test (push)",
			Description: strings.Repeat("é", 200), TargetURL: "https://ci.example/17"}, "")
		got := d.srv.Statuses("ada/engine")
		if len(got) != 1 || got[0].SHA != d.pull.HeadSHA || got[0].State != "success" || got[0].TargetURL == "" || got[0].Context != "CI / test (push)" {
			t.Errorf("app %v: %+v", app, got)
		}
	}
}

func TestDeliverCheck(t *testing.T) {
	d := newDesk(t, true)
	id := d.send(t, KindCheck, d.check("queued", "", 0), "")
	id = d.send(t, KindCheck, d.check("in_progress", "", 0), id)
	id = d.send(t, KindCheck, d.check("completed", "failure", 120), id)
	got := d.srv.CheckRuns("ada/engine")
	if len(got) != 1 || got[0].Conclusion != "failure" || got[0].Status != "completed" || got[0].ExternalID != "17" || got[0].DetailsURL == "" {
		t.Fatalf("%+v", got)
	}
	seen := map[string]bool{}
	for _, a := range got[0].Output.Annotations {
		if a.StartLine < 1 || a.EndLine < a.StartLine || a.Level != "failure" || a.Path != "a.go" {
			t.Errorf("annotation %+v", a)
		}
		seen[a.Message] = true
	}
	if len(seen) != 120 || len(got[0].Output.Annotations) != 120 {
		t.Errorf("%d annotations, %d of them different; want 120", len(got[0].Output.Annotations), len(seen))
	}
	// The same report again adds nothing.
	if d.send(t, KindCheck, d.check("completed", "failure", 120), id); len(d.srv.CheckRuns("ada/engine")[0].Output.Annotations) != 120 {
		t.Error("annotations were sent twice")
	}
	// The id of a check run that is gone: it is made anew.
	if id = d.send(t, KindCheck, d.check("completed", "success", 60), "999999:60"); len(d.srv.CheckRuns("ada/engine")) != 2 || !strings.HasSuffix(id, ":60") {
		t.Errorf("id %q, %d check runs", id, len(d.srv.CheckRuns("ada/engine")))
	}
}

func TestDeliverCheckUnconfirmed(t *testing.T) {
	d := newDesk(t, true)
	// The first request makes the check run, and the answer is lost.
	lost := &loseAnswer{method: http.MethodPost, path: "/check-runs"}
	client, err := NewClient(ClientConfig{BaseURL: d.srv.API(), AppID: 42, AppKey: appKey(t), HTTP: lost})
	if err != nil {
		t.Fatal(err)
	}
	d.Reporter = NewReporter(client, nil)
	if _, _, err := d.try(t, KindCheck, d.check("queued", "", 0), ""); tgr.CodeOf(err) != tgr.Unavailable {
		t.Fatalf("a lost answer: %v", err)
	}
	d.send(t, KindCheck, d.check("completed", "success", 0), "")
	if got := d.srv.CheckRuns("ada/engine"); len(got) != 1 || got[0].Conclusion != "success" {
		t.Errorf("%+v: want the one check run, completed", got)
	}
}

// loseAnswer loses the answer to the first matching request.
type loseAnswer struct {
	method, path string
	once         sync.Once
}

func (l *loseAnswer) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err == nil && r.Method == l.method && strings.HasSuffix(r.URL.Path, l.path) {
		l.once.Do(func() {
			resp.Body.Close()
			resp, err = nil, fmt.Errorf("connection reset")
		})
	}
	return resp, err
}

func TestDeliverCheckWithToken(t *testing.T) {
	d := newDesk(t, false)
	for range 3 {
		if id := d.send(t, KindCheck, d.check("queued", "", 0), ""); id != "" {
			t.Errorf("id %q", id)
		}
	}
	asked := 0
	for _, r := range d.srv.Requests() {
		if strings.HasSuffix(r.Path, "/check-runs") {
			asked++
		}
	}
	if asked != 1 || strings.Count(d.log.String(), "commit statuses alone") != 1 {
		t.Errorf("asked %d times; log:\n%s", asked, d.log)
	}
}

func TestDeliverComment(t *testing.T) {
	for _, app := range []bool{false, true} {
		d := newDesk(t, app)
		report := func(file string, run int64, body string) CommentReport {
			return CommentReport{Repo: "ada/engine", Number: 1, Section: file, Run: run, Attempt: 1, Body: body}
		}
		// Somebody was here first, with our marker, and with a lot of talk.
		d.srv.AddComment("ada/engine", 1, "mallory", commentMarker+"\n")
		for range 150 {
			d.srv.AddComment("ada/engine", 1, "ada", "nice")
		}
		one := d.send(t, KindComment, report("ci.yml", 1, "ci runs"), "")
		two := d.send(t, KindComment, report("lint.yml", 2, "lint runs"), "")
		if one != two {
			t.Errorf("app %v: comments %s and %s, want one", app, one, two)
		}
		d.send(t, KindComment, report("ci.yml", 1, "ci failed"), one)
		all := d.srv.Comments("ada/engine")
		last := all[len(all)-1]
		if len(all) != 152 || strconv.FormatInt(last.ID, 10) != one || last.Updates != 2 || strings.Contains(last.Body, "ci runs") ||
			!strings.Contains(last.Body, "ci failed") || !strings.Contains(last.Body, "lint runs") {
			t.Errorf("app %v: %d comments, last %+v", app, len(all), last)
		}
		if all[0].Updates != 0 {
			t.Errorf("app %v: another's comment was edited", app)
		}
		// Deleted meanwhile: it is found by its marker, or made anew.
		if id := d.send(t, KindComment, report("ci.yml", 3, "again"), "424242"); id != one {
			t.Errorf("app %v: id %s, want %s", app, id, one)
		}
	}
}

func TestDeliverFailures(t *testing.T) {
	d := newDesk(t, false)
	status := StatusReport{Repo: "ada/engine", SHA: d.pull.HeadSHA, State: "success", Context: "c"}
	header := func(kv ...string) http.Header {
		h := http.Header{}
		for i := 0; i < len(kv); i += 2 {
			h.Set(kv[i], kv[i+1])
		}
		return h
	}
	reset := strconv.FormatInt(time.Now().Add(90*time.Second).Unix(), 10)
	for _, tt := range []struct {
		name     string
		fault    githubtest.Fault
		code     tgr.Code
		min, max time.Duration
	}{
		{"server error", githubtest.Fault{Status: 502}, tgr.Unavailable, 0, 0},
		{"server asks for a pause", githubtest.Fault{Status: 503, Header: header("Retry-After", "7")}, tgr.Unavailable, 7 * time.Second, 7 * time.Second},
		{"dropped", githubtest.Fault{Drop: true}, tgr.Unavailable, 0, 0},
		{"refused", githubtest.Fault{Status: 422}, tgr.Invalid, 0, 0},
		{"forbidden", githubtest.Fault{Status: 403}, tgr.Unauthorized, 0, 0},
		{"token expired", githubtest.Fault{Status: 401}, tgr.Unavailable, 0, 0},
		{"gone", githubtest.Fault{Status: 404}, tgr.NotFound, 0, 0},
		{"too many requests", githubtest.Fault{Status: 429, Header: header("Retry-After", "9")}, tgr.Limit, 9 * time.Second, 9 * time.Second},
		{"secondary limit", githubtest.Fault{Status: 403, Header: header("Retry-After", "11"),
			Body: `{"message":"You have exceeded a secondary rate limit","documentation_url":"https://docs.github.com/rest/overview/rate-limits-for-the-rest-api#about-secondary-rate-limits"}`},
			tgr.Limit, 11 * time.Second, 11 * time.Second},
		{"secondary limit without a time", githubtest.Fault{Status: 403,
			Body: `{"message":"You have exceeded a secondary rate limit","documentation_url":"https://docs.github.com/x#about-secondary-rate-limits"}`},
			tgr.Limit, time.Minute, time.Minute},
		{"primary limit", githubtest.Fault{Status: 403, Header: header("X-RateLimit-Limit", "5000", "X-RateLimit-Remaining", "0", "X-RateLimit-Reset", reset),
			Body: `{"message":"API rate limit exceeded"}`}, tgr.Limit, 60 * time.Second, 92 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// A client remembers limits: each case has its own.
			client, err := NewClient(ClientConfig{BaseURL: d.srv.API(), Token: "pat", HTTP: &http.Transport{DisableKeepAlives: true}})
			if err != nil {
				t.Fatal(err)
			}
			d.Reporter = NewReporter(client, nil)
			d.srv.Script(tt.fault)
			_, wait, err := d.try(t, KindStatus, status, "")
			if tgr.CodeOf(err) != tt.code || wait < tt.min || wait > tt.max {
				t.Errorf("code %q after %v, want %q after %v to %v: %v", tgr.CodeOf(err), wait, tt.code, tt.min, tt.max, err)
			}
			if err == nil || !strings.Contains(err.Error(), "ada/engine") || !strings.Contains(err.Error(), `"c"`) || strings.Contains(err.Error(), "pat ") {
				t.Errorf("the error does not name the thing: %v", err)
			}
		})
	}
	for name, tt := range map[string]struct{ kind, body string }{
		"kind":       {"smoke signal", "{}"},
		"body":       {KindStatus, "["},
		"repository": {KindStatus, `{"repo":"../x"}`},
	} {
		if _, _, err := d.Deliver(t.Context(), tt.kind, []byte(tt.body), ""); tgr.CodeOf(err) != tgr.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDeliverWithoutCredentials(t *testing.T) {
	client, err := NewClient(ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	r := NewReporter(client, slog.New(slog.NewTextHandler(&log, nil)))
	for range 3 {
		if id, wait, err := r.Deliver(t.Context(), KindCheck, []byte("{}"), "7"); id != "7" || wait != 0 || err != nil {
			t.Errorf("%q, %v, %v", id, wait, err)
		}
	}
	if strings.Count(log.String(), "not reported") != 1 {
		t.Errorf("log:\n%s", &log)
	}
	if token, err := client.RepoToken(t.Context(), "ada/engine"); token != "" || err != nil {
		t.Errorf("token %q, %v", token, err)
	}
}

func TestClientTokens(t *testing.T) {
	d := newDesk(t, true)
	d.repo.SetPrivate(true)
	token, err := d.client.RepoToken(t.Context(), "ada/engine")
	if err != nil || !strings.HasPrefix(token, "ghs_") {
		t.Errorf("%q, %v", token, err)
	}
	if again, err := d.client.RepoToken(t.Context(), "ada/engine"); again != token || err != nil {
		t.Errorf("a second token, %v", err)
	}
	if _, err := d.client.RepoToken(t.Context(), "bob/none"); err == nil || !strings.Contains(err.Error(), "bob/none") {
		t.Errorf("where the App is not installed: %v", err)
	}
	for name, c := range map[string]ClientConfig{
		"key": {AppID: 1, AppKey: []byte("nonsense")},
		"URL": {BaseURL: "ftp://x"},
	} {
		if _, err := NewClient(c); tgr.CodeOf(err) != tgr.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// outbox is the store's, in memory.
type outbox struct {
	mu      sync.Mutex
	reports map[string]*entry
	err     error
}

type entry struct {
	Report
	sent int64
	due  time.Time
	drop string
}

func (o *outbox) put(key, repo string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.reports == nil {
		o.reports = make(map[string]*entry)
	}
	e := o.reports[key]
	if e == nil {
		e = &entry{Report: Report{Key: key}}
		o.reports[key] = e
	}
	e.Version++
	e.Body = fmt.Appendf(nil, `{"repo":%q,"version":%d}`, repo, e.Version)
}

func (o *outbox) NextReports(_ context.Context, now time.Time, limit int) ([]Report, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var due []Report
	for _, e := range o.reports {
		if e.Version > e.sent && !e.due.After(now) && len(due) < limit {
			due = append(due, e.Report)
		}
	}
	return due, o.err
}

func (o *outbox) end(key string, version int64, change func(*entry)) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	change(o.reports[key])
	return nil
}

func (o *outbox) ReportDone(_ context.Context, key string, version int64, remoteID string) error {
	return o.end(key, version, func(e *entry) { e.sent, e.RemoteID, e.Tries = version, remoteID, 0 })
}

func (o *outbox) ReportRetry(_ context.Context, key string, version int64, at time.Time, reason string) error {
	return o.end(key, version, func(e *entry) { e.Tries++; e.due = at })
}

func (o *outbox) ReportDefer(_ context.Context, key string, version int64, at time.Time) error {
	return o.end(key, version, func(e *entry) { e.due = at })
}

func (o *outbox) ReportDrop(_ context.Context, key string, version int64, reason string) error {
	return o.end(key, version, func(e *entry) { e.sent, e.drop = version, reason })
}

var _ Outbox = (*outbox)(nil)

func TestPump(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		box := &outbox{}
		var mu sync.Mutex
		var sent []string
		fail := map[string]error{}
		after := time.Duration(0)
		wake := make(chan struct{}, 1)
		p := NewPump(PumpConfig{Outbox: box, Wake: wake, Deliver: func(_ context.Context, kind string, body []byte, remoteID string) (string, time.Duration, error) {
			mu.Lock()
			defer mu.Unlock()
			sent = append(sent, kind+" "+string(body)+" "+remoteID)
			if err := fail[kind]; err != nil {
				return "half", after, err
			}
			return "made", 0, nil
		}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		expect := func(what string, want ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if diff := cmp.Diff(want, sent); diff != "" {
				t.Errorf("%s: %s", what, diff)
			}
			sent = nil
		}
		set := func(kind string, err error, wait time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			fail[kind], after = err, wait
		}
		put := func(key string) {
			box.put(key, "ada/engine")
			wake <- struct{}{}
		}
		expect("nothing")
		put("check/1")
		expect("woken", `check {"repo":"ada/engine","version":1} `)
		put("check/1")
		expect("updated", `check {"repo":"ada/engine","version":2} made`)
		set("check", tgr.Errorf("x", tgr.Unavailable, "down"), 0)
		put("check/1")
		expect("fails", `check {"repo":"ada/engine","version":3} made`)
		box.put("check/1", "ada/engine") // while it waits: only the newer body counts
		time.Sleep(time.Second)
		expect("backs off")
		set("check", nil, 0)
		time.Sleep(10 * time.Second)
		expect("again, with what the failed delivery made", `check {"repo":"ada/engine","version":4} half`)
		set("status", tgr.Errorf("x", tgr.Limit, "slow down"), time.Minute)
		put("status/1")
		expect("limited", `status {"repo":"ada/engine","version":1} `)
		set("status", nil, 0)
		time.Sleep(50 * time.Second)
		expect("obeys")
		time.Sleep(15 * time.Second)
		expect("after the pause", `status {"repo":"ada/engine","version":1} half`)
		set("comment", tgr.Errorf("x", tgr.Invalid, "no such pull request"), 0)
		put("comment/1")
		expect("refused", `comment {"repo":"ada/engine","version":1} `)
		time.Sleep(time.Hour)
		expect("given up")
		if e := box.reports["comment/1"]; !strings.Contains(e.drop, "no such pull request") {
			t.Errorf("dropped because of %q", e.drop)
		}
		box.mu.Lock()
		box.err = fmt.Errorf("locked")
		box.mu.Unlock()
		time.Sleep(20 * time.Second)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestPumpOwners checks that a limit of one owner holds back his reports and nobody else's.
func TestPumpOwners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		box := &outbox{}
		var mu sync.Mutex
		calls := map[string]int{}
		p := NewPump(PumpConfig{Outbox: box, Deliver: func(_ context.Context, _ string, body []byte, _ string) (string, time.Duration, error) {
			owner := ownerOf(Report{Body: body})
			mu.Lock()
			defer mu.Unlock()
			calls[owner]++
			if owner == "ada" {
				return "", time.Hour, tgr.Errorf("x", tgr.Limit, "slow down")
			}
			return "", 0, nil
		}})
		for i := range 10 {
			box.put(fmt.Sprint("status/a", i), "Ada/engine")
			box.put(fmt.Sprint("status/b", i), "bob/x")
		}
		if n, err := p.Once(t.Context()); n != 20 || err != nil {
			t.Fatal(n, err)
		}
		if diff := cmp.Diff(map[string]int{"ada": 1, "bob": 10}, calls); diff != "" {
			t.Error(diff)
		}
		if n, _ := p.Once(t.Context()); n != 0 {
			t.Errorf("%d reports are due during the pause", n)
		}
		box.put("status/new", "ada/engine") // nobody has put that one off yet
		if _, err := p.Once(t.Context()); err != nil || calls["ada"] != 1 {
			t.Errorf("%d calls, %v: a pause holds for new reports too", calls["ada"], err)
		}
		time.Sleep(time.Hour)
		if _, err := p.Once(t.Context()); err != nil || calls["ada"] != 2 {
			t.Errorf("%d calls, %v: the pause is over", calls["ada"], err)
		}
		for key, e := range box.reports {
			if e.Tries > 2 {
				t.Errorf("%s was tried %d times", key, e.Tries)
			}
		}
	})
}

func TestPumpPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		box := &outbox{}
		p := NewPump(PumpConfig{Outbox: box, Deliver: func(context.Context, string, []byte, string) (string, time.Duration, error) { return "", 0, nil }})
		for i := range 70 {
			box.put(fmt.Sprint("status/", i), "ada/engine")
		}
		start := time.Now()
		if _, err := p.Once(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 9*time.Second || took > 11*time.Second {
			t.Errorf("70 reports took %v, want a burst of 60 and one per second", took)
		}
	})
}

func TestCheckRunID(t *testing.T) {
	for remote, want := range map[string]int64{"": 0, "17": 17, "17:50": 17, "x": 0} {
		if got := CheckRunID(remote); got != want {
			t.Errorf("%q: %d, want %d", remote, got, want)
		}
	}
	if got := CheckKey(17); got != "check/17" {
		t.Errorf("key %q", got)
	}
}
