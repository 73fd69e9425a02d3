package llm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Bounds of what a backend may send.
const (
	maxReply  = 1 << 20  // bytes of a reply, and of all lines of a stream
	maxText   = 64 << 10 // bytes of an answer
	maxError  = 300      // bytes of a message of the backend's that are shown
	maxSpaces = 200      // blanks in a row: small models under a grammar run away like that
)

// endpoint is an HTTP API.
type endpoint struct {
	base   string
	key    string // bearer token; "": none
	client *http.Client
}

// newEndpoint checks the address. Redirects are not followed: a prompt goes where the operator said, or nowhere.
func newEndpoint(base, key string, local bool) (endpoint, error) {
	u, err := url.Parse(strings.TrimRight(base, "/"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return endpoint{}, fmt.Errorf("llm: %q is not an http or https address without credentials", base)
	}
	connect := 5 * time.Second
	if local {
		connect = time.Second
	}
	t := &http.Transport{DialContext: (&net.Dialer{Timeout: connect}).DialContext, MaxIdleConnsPerHost: 2, IdleConnTimeout: time.Minute}
	if !local {
		t.Proxy = http.ProxyFromEnvironment
	}
	return endpoint{base: u.String(), key: key, client: &http.Client{Transport: t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}, nil
}

// do sends a request; body nil makes it a GET. The caller closes the response's body, which ends at maxReply.
func (e endpoint) do(ctx context.Context, path string, body any) (*http.Response, error) {
	method, rd := http.MethodGet, io.Reader(nil)
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, faultf(Invalid, "encode the question: %v", err)
		}
		method, rd = http.MethodPost, bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, e.base+path, rd)
	if err != nil {
		return nil, faultf(Refused, "%v", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if e.key != "" {
		req.Header.Set("Authorization", "Bearer "+e.key)
	}
	resp, err := e.client.Do(req)
	if err != nil {
		return nil, netFault(ctx, err)
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxReply), resp.Body}
	return resp, nil
}

// netFault tells a deadline from a caller that has gone, and both from a backend that is not there.
func netFault(ctx context.Context, err error) *Fault {
	var ne net.Error
	switch {
	case errors.Is(context.Cause(ctx), context.DeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return &Fault{Reason: Timeout, Message: "no answer in time"}
	case ctx.Err() != nil:
		return &Fault{Reason: Stopped, Message: "the question was withdrawn"}
	case errors.As(err, &ne) && ne.Timeout():
		return &Fault{Reason: Unreachable, Message: "no connection in time", Err: trimURL(err)}
	}
	return &Fault{Reason: Unreachable, Err: trimURL(err)}
}

// trimURL drops the address that net/http repeats: it is configuration, and errors are shown to users.
func trimURL(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

// statusFault is what an HTTP status other than 200 means. message is the backend's.
func statusFault(status int, header http.Header, message string) *Fault {
	f := &Fault{Message: fmt.Sprintf("HTTP status %d: %s", status, cut(Strip(message), maxError)), RetryAfter: retryAfter(header)}
	switch {
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		f.Reason = Busy
	case status == http.StatusRequestEntityTooLarge:
		f.Reason = TooLarge
	case status == http.StatusBadRequest && strings.Contains(message, "context length"):
		f.Reason = TooLarge
	case status == http.StatusInternalServerError && strings.Contains(message, "invalid JSON schema"):
		f.Reason = Invalid // Ollama's 500 for a caller's fault
	case status == http.StatusInternalServerError && strings.Contains(message, "loading model"):
		f.Reason = Busy // Ollama's, after somebody else's question was withdrawn while the model was being loaded
	case status == http.StatusBadRequest, status == http.StatusUnprocessableEntity:
		f.Reason = Invalid // the question's fault: others may do better
	case status == http.StatusRequestTimeout, status == http.StatusGatewayTimeout:
		f.Reason = Timeout
	case status >= 500:
		f.Reason = Unreachable
	default:
		f.Reason = Refused
	}
	return f
}

// retryAfter reads the header's seconds; dates are not worth it. At most ten minutes.
func retryAfter(h http.Header) time.Duration {
	n, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || n < 0 {
		return 0
	}
	return min(time.Duration(n)*time.Second, 10*time.Minute)
}

func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
