package vmapi

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Times of the client.
const (
	callWithin     = 30 * time.Second       // of a call that has nothing to wait for
	pollEvery      = 500 * time.Millisecond // as the original's clients did
	capacityAgain  = 2 * time.Second        // where the server does not say when to ask again
	mostRetryAfter = time.Minute            // that is believed
	leaseFor       = 2 * time.Minute        // of a machine that a job runs on; renewed at a third of it
	deleteWithin   = time.Minute
)

// ClientConfig says which server a client calls. URL is required.
type ClientConfig struct {
	redacted

	URL   string       // "http://127.0.0.1:8080"
	Token string       // a JWT; "": none is sent
	HTTP  *http.Client // nil: one without a time-out of its own, since commands take as long as they take
	Log   *slog.Logger // nil: nothing is logged
}

// Client calls a server of the VM management API: ours, or one that knows no more than fcctl-web. Its methods are safe
// for concurrent use. What a server refuses is an *Error.
type Client struct {
	cfg  ClientConfig
	base *url.URL

	mu     sync.Mutex
	health *Health // what the server said of itself; nil: it was not asked
}

// NewClient returns a client; it calls nobody.
func NewClient(cfg ClientConfig) (*Client, error) {
	base, err := url.Parse(cfg.URL)
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" {
		return nil, fmt.Errorf("the VM API's address %q: expected http://host:port", cfg.URL)
	}
	base.Path = strings.TrimSuffix(base.Path, "/")
	if cfg.HTTP == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost = 32
		t.Protocols = new(http.Protocols)
		t.Protocols.SetHTTP1(true) // a connection of HTTP/2 cannot become that of a port
		cfg.HTTP = &http.Client{Transport: t}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Client{cfg: cfg, base: base}, nil
}

// call is one request.
type call struct {
	method, path string
	query        url.Values
	in           any       // encoded as JSON; nil: there is no body
	body         io.Reader // in place of in
	key          string    // Idempotency-Key
	upgrade      string    // the protocol that the connection is to change to
}

// send sends a request and returns the answer, whose status is 2xx, or 101 where an upgrade was asked for. The caller closes its body.
func (c *Client) send(ctx context.Context, k call) (*http.Response, error) {
	u := *c.base
	u.RawPath = ""
	u.RawQuery = k.query.Encode()
	target := u.JoinPath(k.path)
	body := k.body
	if k.in != nil {
		b, err := json.Marshal(k.in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, k.method, target.String(), body)
	if err != nil {
		return nil, err
	}
	if c.cfg.Token != "" {
		r.Header.Set("Authorization", "Bearer "+c.cfg.Token)
	}
	if k.in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if k.key != "" {
		r.Header.Set("Idempotency-Key", k.key)
	}
	if k.upgrade != "" {
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", k.upgrade)
	}
	answer, err := c.cfg.HTTP.Do(r)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("the VM API: %w", err)
	}
	if answer.StatusCode/100 != 2 && (k.upgrade == "" || answer.StatusCode != http.StatusSwitchingProtocols) {
		defer answer.Body.Close()
		return nil, c.refusal(answer)
	}
	return answer, nil
}

// refusal reads an answer that says no. Some servers say so in plain text.
func (c *Client) refusal(answer *http.Response) *Error {
	b, _ := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	var said struct {
		Error   string `json:"error"`
		Message string `json:"message"`
		Code    string `json:"code"`
	}
	e := &Error{Status: answer.StatusCode, Code: codeOf(answer.StatusCode)}
	if json.Unmarshal(b, &said) == nil && cmp.Or(said.Error, said.Message) != "" {
		e.Message, e.Code = clip(cmp.Or(said.Error, said.Message), 4096), cmp.Or(clip(said.Code, 64), e.Code)
	} else if kind, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type")); kind == "text/plain" {
		e.Message = clip(strings.TrimSpace(string(b)), 4096)
	}
	e.Message = cmp.Or(e.Message, http.StatusText(e.Status))
	if e.Status == http.StatusUnauthorized {
		e.Message = "the VM API at " + c.base.Host + " refuses the token, FIRECRACKER_AUTH_TOKEN: " + e.Message
	}
	if s, err := strconv.Atoi(answer.Header.Get("Retry-After")); err == nil && s >= 0 {
		e.RetryAfter = min(time.Duration(s)*time.Second, mostRetryAfter)
	}
	return e
}

func codeOf(status int) string {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return "unauthorized"
	case http.StatusNotFound:
		return "not_found"
	case http.StatusConflict:
		return "conflict"
	case http.StatusTooManyRequests:
		return "limit"
	case http.StatusNotImplemented:
		return "unsupported"
	case http.StatusServiceUnavailable:
		return "unavailable"
	}
	if status < 500 {
		return "invalid"
	}
	return "internal"
}

// ask is a call whose answer is JSON.
func (c *Client) ask(ctx context.Context, k call, out any) error {
	answer, err := c.send(ctx, k)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("the VM API: %s %s: %w", k.method, k.path, err)
	}
	if len(b) > maxAnswer {
		return fmt.Errorf("the VM API: %s %s: an answer of more than %d bytes", k.method, k.path, maxAnswer)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("the VM API: %s %s: the answer is not what is expected: %w", k.method, k.path, err)
	}
	return nil
}

// quick is ask with a bound.
func (c *Client) quick(ctx context.Context, k call, out any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, callWithin, fmt.Errorf("the VM API did not answer within %v", callWithin))
	defer cancel()
	return c.ask(ctx, k, out)
}

// Health asks the server what it is.
func (c *Client) Health(ctx context.Context) (Health, error) {
	var h Health
	var loose struct {
		Health
		Timestamp any `json:"timestamp"` // the original's is not always a time of RFC 3339
	}
	if err := c.quick(ctx, call{method: "GET", path: "/health"}, &loose); err != nil {
		return h, err
	}
	h = loose.Health
	c.mu.Lock()
	c.health = &h
	c.mu.Unlock()
	return h, nil
}

// original reports whether the server knows no more than fcctl-web's calls.
func (c *Client) original(ctx context.Context) (bool, error) {
	ours, err := c.has(ctx, FeatureExec, FeatureFiles)
	return !ours, err
}

// has reports whether the server has all of these features. A server of the original kind has none.
func (c *Client) has(ctx context.Context, features ...string) (bool, error) {
	c.mu.Lock()
	h := c.health
	c.mu.Unlock()
	if h == nil {
		asked, err := c.Health(ctx)
		var refused *Error
		if errors.As(err, &refused) && refused.Status == http.StatusNotFound {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		h = &asked
	}
	for _, f := range features {
		if !slices.Contains(h.Features, f) {
			return false, nil
		}
	}
	return true, nil
}

// List lists the machines.
func (c *Client) List(ctx context.Context) (List, error) {
	var l List
	return l, c.quick(ctx, call{method: "GET", path: "/api/vms"}, &l)
}

// Create asks for a machine, and returns what the server says of it at once: it need not have booted. Asked again with
// the same key, a server of ours makes no second one; "" is a new key.
func (c *Client) Create(ctx context.Context, req CreateRequest, key string) (VM, error) {
	if key == "" {
		key = rand.Text()
	}
	var v VM
	err := c.ask(ctx, call{method: "POST", path: "/api/vms", in: req, key: key}, &v)
	if err == nil && (v.ID == "" || len(v.ID) > maxLabel) {
		err = errors.New("the VM API made a machine, and did not say which")
	}
	return v, err
}

// Get returns a machine. With wait, a server of ours answers when it is ready or has failed, or after that time.
func (c *Client) Get(ctx context.Context, id string, wait time.Duration) (VM, error) {
	var v VM
	q := url.Values{}
	if wait >= time.Second {
		q.Set("wait_seconds", strconv.Itoa(int(wait/time.Second)))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, wait+callWithin, errors.New("the VM API does not answer"))
	defer cancel()
	return v, c.ask(ctx, call{method: "GET", path: vmPath(id), query: q}, &v)
}

// Delete frees a machine; one that is not there is freed. An outcome, completed or failed, is noted by a server of ours.
func (c *Client) Delete(ctx context.Context, id, outcome string) error {
	q := url.Values{}
	if outcome != "" {
		q.Set("outcome", outcome)
	}
	err := c.ask(ctx, call{method: "DELETE", path: vmPath(id), query: q}, nil)
	var refused *Error
	if errors.As(err, &refused) && refused.Status == http.StatusNotFound {
		return nil
	}
	return err
}

// Lease promises the machine to the caller for d from now; 0 gives it back.
func (c *Client) Lease(ctx context.Context, id string, d time.Duration) (VM, error) {
	var v VM
	return v, c.quick(ctx, call{method: "POST", path: vmPath(id, "lease"), in: LeaseRequest{Seconds: int(d / time.Second)}}, &v)
}

// Outcome notes how what the machine was for ended: completed or failed. The machine stays.
func (c *Client) Outcome(ctx context.Context, id, outcome string) error {
	return c.quick(ctx, call{method: "POST", path: vmPath(id, "outcome"), in: OutcomeRequest{Outcome: outcome}}, nil)
}

// Pause has a machine stand still, Resume lets it go on.
func (c *Client) Pause(ctx context.Context, id string) error {
	return c.ask(ctx, call{method: "POST", path: vmPath(id, "pause")}, nil)
}

// Resume lets a paused machine go on.
func (c *Client) Resume(ctx context.Context, id string) error {
	return c.ask(ctx, call{method: "POST", path: vmPath(id, "resume")}, nil)
}

// Snapshot takes a snapshot. The original's servers call its id by one of two names, or by none.
func (c *Client) Snapshot(ctx context.Context, id string, req SnapshotRequest) (Snapshot, error) {
	var s Snapshot
	if err := c.ask(ctx, call{method: "POST", path: vmPath(id, "snapshots"), in: req, key: rand.Text()}, &s); err != nil {
		return s, err
	}
	s.SnapshotID = cmp.Or(s.SnapshotID, s.ID)
	if s.SnapshotID == "" {
		return s, errors.New("the VM API took a snapshot, and did not say which")
	}
	return s, nil
}

// Snapshots lists what a machine can be rolled back to.
func (c *Client) Snapshots(ctx context.Context, id string) (Snapshots, error) {
	var s Snapshots
	return s, c.quick(ctx, call{method: "GET", path: vmPath(id, "snapshots")}, &s)
}

// Rollback puts a machine back to a snapshot. What ran is lost.
func (c *Client) Rollback(ctx context.Context, id, snapshot string) (Rollback, error) {
	var r Rollback
	return r, c.ask(ctx, call{method: "POST", path: vmPath(id, "rollback", snapshot), key: rand.Text()}, &r)
}

// History lists what ran in a machine, the newest first.
func (c *Client) History(ctx context.Context, id string, limit int, failures bool) (History, error) {
	q := url.Values{"limit": {strconv.Itoa(limit)}}
	if failures {
		q.Set("failures_only", "true")
	}
	var h History
	if err := c.quick(ctx, call{method: "GET", path: vmPath(id, "history"), query: q}, &h); err != nil {
		return h, err
	}
	if h.History == nil {
		h.History = h.Entries
	}
	return h, nil
}

// Execute runs code and returns when it has ended. A result without an exit code is an error that matches ErrNoStatus.
func (c *Client) Execute(ctx context.Context, req ExecuteRequest) (ExecuteResult, error) {
	var r ExecuteResult
	if err := c.ask(ctx, call{method: "POST", path: "/api/llm/execute", in: req}, &r); err != nil {
		return r, err
	}
	if r.ExitCode == nil {
		why := "it gives no reason"
		if r.Error != nil && *r.Error != "" {
			why = clip(*r.Error, 1024)
		}
		return r, fmt.Errorf("%w: %s", ErrNoStatus, why)
	}
	return r, nil
}

// ErrNoStatus is an answer without an exit code, which is a failure: the original took it for success.
var ErrNoStatus = errors.New("the VM API's answer has no exit code")

func vmPath(id string, rest ...string) string {
	p := "/api/vms/" + url.PathEscape(id)
	for _, r := range rest {
		p += "/" + url.PathEscape(r)
	}
	return p
}
