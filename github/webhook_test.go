package github

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/terraphim/tgr"
	"golang.org/x/time/rate"
)

const secret = "It's a Secret to Everybody"

// inbox accepts deliveries as the store does: a delivery is known by its id and by its body.
type inbox struct {
	mu     sync.Mutex
	next   tgr.RunID
	byID   map[tgr.DeliveryID]tgr.RunID
	byHash map[string]tgr.RunID
	got    []tgr.Delivery
	err    error
}

func (b *inbox) accept(_ context.Context, d tgr.Delivery) ([]tgr.RunID, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return nil, false, b.err
	}
	if b.byID == nil {
		b.byID, b.byHash = make(map[tgr.DeliveryID]tgr.RunID), make(map[string]tgr.RunID)
	}
	if id, ok := b.byID[d.ID]; ok {
		return []tgr.RunID{id}, false, nil
	}
	if id, ok := b.byHash[d.BodyHash]; ok {
		return []tgr.RunID{id}, false, nil
	}
	b.next++
	b.byID[d.ID], b.byHash[d.BodyHash] = b.next, b.next
	b.got = append(b.got, d)
	return []tgr.RunID{b.next}, true, nil
}

func door(t testing.TB, c WebhookConfig) (*WebhookHandler, *inbox) {
	t.Helper()
	box := &inbox{}
	if c.Secrets == nil {
		c.Secrets = [][]byte{[]byte("old"), []byte(secret)}
	}
	if c.Accept == nil {
		c.Accept = box.accept
	}
	h, err := NewWebhookHandler(c)
	if err != nil {
		t.Fatal(err)
	}
	return h, box
}

// request is a webhook as GitHub sends it; change alters it after it was signed.
func request(event, body string, change func(*http.Request)) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/webhook", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-GitHub-Event", event)
	r.Header.Set("X-GitHub-Delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958")
	r.Header.Set("X-Hub-Signature-256", Sign([]byte(secret), []byte(body)))
	if change != nil {
		change(r)
	}
	return r
}

func serve(h http.Handler, r *http.Request) (*http.Response, answer) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var a answer
	json.Unmarshal(w.Body.Bytes(), &a)
	return w.Result(), a
}

var pushBody = `{"ref":"refs/heads/x","before":"` + shaA + `","after":"` + shaB + `",` + repository + `}`

func TestSign(t *testing.T) {
	for _, tt := range []struct{ key, body, want string }{
		{secret, "Hello, World!", "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"},
		{"0123456789abcdef", `{"yo":true}`, "sha256=b1f8020f5b4cd42042f807dd939015c4a418bc1ff7f604dd55b0a19b5d953d9b"},
	} {
		if got := Sign([]byte(tt.key), []byte(tt.body)); got != tt.want {
			t.Errorf("Sign(%q) = %s", tt.body, got)
		}
	}
}

func TestWebhookAnswers(t *testing.T) {
	header := func(k, v string) func(*http.Request) { return func(r *http.Request) { r.Header.Set(k, v) } }
	signedWith := func(key string) func(*http.Request) {
		return header("X-Hub-Signature-256", Sign([]byte(key), []byte(pushBody)))
	}
	for _, tt := range []struct {
		name, event, body string
		change            func(*http.Request)
		code              int
		status, observed  string
	}{
		{"push", "push", pushBody, nil, 202, ResultAccepted, "push"},
		{"the other secret", "push", pushBody, signedWith("old"), 202, ResultAccepted, "push"},
		{"charset", "push", pushBody, header("Content-Type", "application/json; charset=utf-8"), 202, ResultAccepted, "push"},
		{"ping", "ping", `{"zen":"Design for failure.","hook_id":1}`, nil, 200, ResultPing, "ping"},
		{"event that starts nothing", "star", `{"a":1}`, nil, 202, ResultIgnored, "star"},
		{"unknown event", "brand_new", "not even JSON", nil, 202, ResultIgnored, "unknown"},
		{"event that has no webhook", "pull_request_target", pullPayload(""), nil, 400, ResultRefused, ""},
		{"another that has none", "schedule", pushBody, nil, 400, ResultRefused, ""},
		{"no signature", "push", pushBody, func(r *http.Request) { r.Header.Del("X-Hub-Signature-256") }, 401, ResultRefused, ""},
		{"the old signature only", "push", pushBody, func(r *http.Request) {
			r.Header.Del("X-Hub-Signature-256")
			r.Header.Set("X-Hub-Signature", "sha1=757107ea0eb2509fc211221cce984b8a37570b6d")
		}, 401, ResultRefused, ""},
		{"signature without its name", "push", pushBody, header("X-Hub-Signature-256", strings.Repeat("ab", 32)), 401, ResultRefused, ""},
		{"signature too short", "push", pushBody, header("X-Hub-Signature-256", "sha256=ab"), 401, ResultRefused, ""},
		{"signature not hexadecimal", "push", pushBody, header("X-Hub-Signature-256", "sha256="+strings.Repeat("zz", 32)), 401, ResultRefused, ""},
		{"two signatures", "push", pushBody, func(r *http.Request) {
			r.Header.Add("X-Hub-Signature-256", r.Header.Get("X-Hub-Signature-256"))
		}, 401, ResultRefused, ""},
		{"wrong secret", "push", pushBody, signedWith("guess"), 403, ResultRefused, ""},
		{"another body", "push", pushBody + " ", signedWith(secret), 403, ResultRefused, ""},
		{"bad JSON", "push", "{", nil, 400, ResultRefused, "push"},
		{"no event", "push", pushBody, func(r *http.Request) { r.Header.Del("X-GitHub-Event") }, 400, ResultRefused, ""},
		{"no delivery", "push", pushBody, header("X-GitHub-Delivery", "../../x"), 400, ResultRefused, ""},
		{"GET", "push", "", func(r *http.Request) { r.Method = http.MethodGet }, 405, ResultRefused, ""},
		{"compressed", "push", pushBody, header("Content-Encoding", "gzip"), 415, ResultRefused, ""},
		{"XML", "push", pushBody, header("Content-Type", "text/xml"), 415, ResultRefused, ""},
		{"no type", "push", pushBody, func(r *http.Request) { r.Header.Del("Content-Type") }, 415, ResultRefused, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			observed := "never"
			h, box := door(t, WebhookConfig{Observe: func(event, result string) { observed = event + " " + result }})
			resp, a := serve(h, request(tt.event, tt.body, tt.change))
			if resp.StatusCode != tt.code || a.Status != tt.status || a.Message == "" || a.RunIDs == nil {
				t.Errorf("%d %+v, want %d %s with a message", resp.StatusCode, a, tt.code, tt.status)
			}
			if want := tt.observed + " " + tt.status; observed != want {
				t.Errorf("observed %q, want %q", observed, want)
			}
			if stored := len(box.got) > 0; stored != (tt.status == ResultAccepted) {
				t.Errorf("stored: %v", stored)
			}
			if tt.code == 405 && resp.Header.Get("Allow") != "POST" {
				t.Error("405 without Allow")
			}
		})
	}
}

func TestWebhookExamples(t *testing.T) {
	h, box := door(t, WebhookConfig{})
	for i, e := range examples(t) {
		before := len(box.got)
		resp, a := serve(h, request(e.event, string(e.body), func(r *http.Request) { r.Header.Set("X-GitHub-Delivery", fmt.Sprint("delivery-", i)) }))
		if resp.StatusCode/100 != 2 {
			t.Errorf("%s: %d %s", e.event, resp.StatusCode, a.Message)
		}
		if len(box.got) > before && box.got[before].Event.Name != e.event {
			t.Errorf("%s was taken for %s", e.event, box.got[before].Event.Name)
		}
		if stored := len(box.got) > before; !stored && a.Status == ResultAccepted || stored && !Triggers(e.event) {
			t.Errorf("%s: %s, stored: %v", e.event, a.Status, stored)
		}
	}
}

func TestWebhookDuplicates(t *testing.T) {
	h, box := door(t, WebhookConfig{})
	form := "payload=" + url.QueryEscape(pushBody)
	other := func(r *http.Request) { r.Header.Set("X-GitHub-Delivery", "another") }
	for i, tt := range []struct {
		req  *http.Request
		code int
		want answer
	}{
		{request("push", pushBody, nil), 202, answer{Status: ResultAccepted, RunIDs: []tgr.RunID{1}}},
		{request("push", pushBody, nil), 200, answer{Status: ResultDuplicate, RunIDs: []tgr.RunID{1}}},
		{request("push", pushBody, other), 200, answer{Status: ResultDuplicate, RunIDs: []tgr.RunID{1}}},
		{request("issues", pushBody, other), 200, answer{Status: ResultDuplicate, RunIDs: []tgr.RunID{1}}},
		{request("push", form, func(r *http.Request) {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Header.Set("X-GitHub-Delivery", "a-form")
		}), 200, answer{Status: ResultDuplicate, RunIDs: []tgr.RunID{1}}},
		{request("create", strings.Replace(pushBody, `"ref":"refs/heads/x"`, `"ref":"x","ref_type":"branch"`, 1), other), 202, answer{Status: ResultAccepted, RunIDs: []tgr.RunID{2}}},
	} {
		resp, a := serve(h, tt.req)
		if resp.StatusCode != tt.code || a.Status != tt.want.Status || !cmp.Equal(a.RunIDs, tt.want.RunIDs) {
			t.Errorf("request %d: %d %+v, want %d %+v", i, resp.StatusCode, a, tt.code, tt.want)
		}
	}
	if len(box.got) != 2 {
		t.Errorf("%d deliveries, want 2", len(box.got))
	}
	if len(box.got) > 0 && (box.got[0].Received.IsZero() || len(box.got[0].BodyHash) != 64) {
		t.Errorf("delivery %+v", box.got[0])
	}
}

func TestWebhookForm(t *testing.T) {
	for _, tt := range []struct {
		name, form string
		code       int
	}{
		{"payload", "payload=" + url.QueryEscape(pushBody), 202},
		{"among others", "a=b&payload=" + url.QueryEscape(pushBody) + "&c", 202},
		{"none", "a=b", 400},
		{"two", "payload=%7B%7D&payload=%7B%7D", 400},
		{"encoding", "payload=%zz", 400},
		{"empty", "", 400},
	} {
		h, _ := door(t, WebhookConfig{})
		resp, a := serve(h, request("push", tt.form, func(r *http.Request) { r.Header.Set("Content-Type", "application/x-www-form-urlencoded") }))
		if resp.StatusCode != tt.code {
			t.Errorf("%s: %d %s, want %d", tt.name, resp.StatusCode, a.Message, tt.code)
		}
	}
}

func TestWebhookStoreFails(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code int
	}{
		{tgr.Errorf("store", tgr.Unavailable, "the database is locked"), 503},
		{tgr.Errorf("store", tgr.Limit, "the queue is full"), 503},
		{tgr.Errorf("store", tgr.Invalid, "the repository's id and name do not fit"), 400},
		{errors.New("pq: password=hunter2"), 500},
	} {
		h, box := door(t, WebhookConfig{})
		box.err = tt.err
		resp, a := serve(h, request("push", pushBody, nil))
		if resp.StatusCode != tt.code || strings.Contains(a.Message, "hunter2") {
			t.Errorf("%v: %d %s", tt.err, resp.StatusCode, a.Message)
		}
		if (resp.Header.Get("Retry-After") != "") != (tt.code == 503) {
			t.Errorf("%v: Retry-After %q", tt.err, resp.Header.Get("Retry-After"))
		}
	}
}

func TestWebhookSizes(t *testing.T) {
	h, _ := door(t, WebhookConfig{MaxBody: 1 << 10})
	big := strings.Repeat("x", 1<<10+1)
	resp, _ := serve(h, request("push", big, nil))
	if resp.StatusCode != 413 {
		t.Errorf("declared: %d", resp.StatusCode)
	}
	resp, _ = serve(h, request("push", big, func(r *http.Request) { r.ContentLength = -1 }))
	if resp.StatusCode != 413 {
		t.Errorf("chunked: %d", resp.StatusCode)
	}
	// What is held at once is bounded: senders that declare much and send nothing exhaust it, and nothing else.
	var stuck []*io.PipeWriter
	done := make(chan int)
	for range maxHeldBodies {
		r, w := io.Pipe()
		stuck = append(stuck, w)
		go func() {
			resp, _ := serve(h, request("push", "", func(req *http.Request) { req.Body, req.ContentLength = r, 1<<10 }))
			done <- resp.StatusCode
		}()
	}
	for _, w := range stuck {
		w.Write([]byte("x")) // returns when it was read: the body is being held
	}
	resp, _ = serve(h, request("push", pushBody, nil))
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("beyond the bound: %d", resp.StatusCode)
	}
	for _, w := range stuck {
		w.CloseWithError(errors.New("gone"))
		if code := <-done; code != 400 {
			t.Errorf("a sender that left: %d", code)
		}
	}
	if resp, _ = serve(h, request("push", pushBody, nil)); resp.StatusCode != 202 {
		t.Errorf("after they left: %d", resp.StatusCode)
	}
}

func TestWebhookRateLimit(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	h, _ := door(t, WebhookConfig{Rate: rate.Every(10 * time.Second), Burst: 2, Now: func() time.Time { return now }})
	from := func(addr string) (int, string) {
		resp, _ := serve(h, request("ping", "{}", func(r *http.Request) { r.RemoteAddr = addr }))
		return resp.StatusCode, resp.Header.Get("Retry-After")
	}
	for _, tt := range []struct {
		addr  string
		pass  time.Duration
		code  int
		retry string
	}{
		{"192.0.2.1:1", 0, 200, ""},
		{"192.0.2.1:2", 0, 200, ""},
		{"192.0.2.1:3", 0, 429, "10"},
		{"192.0.2.2:1", 0, 200, ""},
		{"192.0.2.1:4", 4 * time.Second, 429, "6"},
		{"192.0.2.1:5", 6 * time.Second, 200, ""},
		{"[2001:db8::1]:1", 0, 200, ""},
		{"[2001:db8::2]:1", 0, 200, ""},
		{"[2001:db8::3]:1", 0, 429, "10"},
		{"[2001:db8:0:1::]:1", 0, 200, ""},
	} {
		now = now.Add(tt.pass)
		if code, retry := from(tt.addr); code != tt.code || retry != tt.retry {
			t.Errorf("%s: %d, Retry-After %q; want %d, %q", tt.addr, code, retry, tt.code, tt.retry)
		}
	}
}

func TestSendersAreBounded(t *testing.T) {
	s := newSenders(10, 1, 1)
	now := time.Now()
	for i := range 1000 {
		s.take(fmt.Sprintf("10.0.%d.%d:1", i/250, i%250), now)
	}
	if len(s.byKey) != 10 || s.order.Len() != 10 {
		t.Errorf("%d senders are remembered, want 10", len(s.byKey))
	}
}

func TestWebhookConfigIsChecked(t *testing.T) {
	accept := (&inbox{}).accept
	for name, c := range map[string]WebhookConfig{
		"no secret":    {Accept: accept},
		"empty secret": {Accept: accept, Secrets: [][]byte{[]byte("a"), {}}},
		"no store":     {Secrets: [][]byte{[]byte("a")}},
	} {
		if _, err := NewWebhookHandler(c); tgr.CodeOf(err) != tgr.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestComparesInConstantTime forbids what a refactoring could bring in: comparing signatures with == or bytes.Equal.
func TestComparesInConstantTime(t *testing.T) {
	src, err := os.ReadFile("webhook.go")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(src, []byte("hmac.Equal(m.Sum(nil), mac)")) || bytes.Contains(src, []byte("bytes.Equal")) || bytes.Contains(src, []byte("mac ==")) {
		t.Error("signatures must be compared with hmac.Equal")
	}
}

func TestWebhookLogHasNoSecret(t *testing.T) {
	var log bytes.Buffer
	h, _ := door(t, WebhookConfig{Log: slog.New(slog.NewTextHandler(&log, nil))})
	serve(h, request("push", pushBody, nil))
	serve(h, request("push", pushBody, func(r *http.Request) { r.Header.Set("X-Hub-Signature-256", "sha256="+strings.Repeat("00", 32)) }))
	if got := log.String(); strings.Contains(got, secret) || strings.Contains(got, "sha256=") || !strings.Contains(got, "result=accepted") || !strings.Contains(got, "code=403") {
		t.Error(got)
	}
}

// TestWebhookOverSockets sends real requests, among them one that stops in the middle.
func TestWebhookOverSockets(t *testing.T) {
	h, _ := door(t, WebhookConfig{})
	srv := httptest.NewServer(h)
	defer srv.Close()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-Hub-Signature-256: %s\r\nContent-Length: 1000\r\n\r\nabc", Sign([]byte("x"), nil))
	conn.(*net.TCPConn).CloseWrite()
	reply, err := io.ReadAll(conn)
	if err != nil || !bytes.Contains(reply, []byte("400 Bad Request")) {
		t.Errorf("%q, %v", reply, err)
	}
	conn.Close()
	req := request("push", pushBody, nil)
	req.RequestURI, req.URL.Scheme, req.URL.Host = "", "http", srv.Listener.Addr().String()
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 202 || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
}

// FuzzForm checks that the form's payload is the one that net/url finds, or an error.
func FuzzForm(f *testing.F) {
	f.Add([]byte("payload=%7B%7D"))
	f.Add([]byte("a=b&payload=x+y%20z&c=d"))
	f.Add([]byte("payload=%zz&payload"))
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := formPayload(body)
		if err != nil {
			return
		}
		want, err := url.ParseQuery(string(body))
		if err != nil {
			return // another field is malformed, which we do not look at
		}
		if _, ok := want["payload"]; !ok || want.Get("payload") != string(got) {
			t.Errorf("%q, net/url says %q", got, want["payload"])
		}
	})
}

func BenchmarkWebhook(b *testing.B) {
	h, _ := door(b, WebhookConfig{Rate: rate.Inf, Accept: func(context.Context, tgr.Delivery) ([]tgr.RunID, bool, error) { return nil, true, nil }})
	for b.Loop() {
		serve(h, request("push", pushBody, nil))
	}
}

func TestSenderOf(t *testing.T) {
	for _, tt := range []struct{ peer, forwarded, want string }{
		{"203.0.113.9:1", "", "203.0.113.9:1"},
		{"203.0.113.9:1", "198.51.100.1", "203.0.113.9:1"}, // from outside anybody can say that
		{"127.0.0.1:1", "", "127.0.0.1:1"},
		{"127.0.0.1:1", "198.51.100.1", "198.51.100.1:0"},
		{"[::1]:1", "10.0.0.1, 198.51.100.1", "198.51.100.1:0"},
		{"127.0.0.1:1", "2001:db8::1", "[2001:db8::1]:0"},
		{"127.0.0.1:1", "198.51.100.1, nonsense", "127.0.0.1:1"},
	} {
		r := &http.Request{RemoteAddr: tt.peer, Header: http.Header{}}
		if tt.forwarded != "" {
			r.Header.Set("X-Forwarded-For", tt.forwarded)
		}
		if got := senderOf(r); got != tt.want {
			t.Errorf("from %s, forwarded for %q: %s, want %s", tt.peer, tt.forwarded, got, tt.want)
		}
	}
}
