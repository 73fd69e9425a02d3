package llm

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
)

// router is a server with the habits of OpenRouter.
type router struct {
	*httptest.Server
	mu       sync.Mutex
	requests []map[string]any
	reply    func(w http.ResponseWriter)
}

func newRouter(t *testing.T) *router {
	r := &router{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var body map[string]any
		if err := json.NewDecoder(req.Body).Decode(&body); err != nil || req.URL.Path != "/v1/chat/completions" || req.Header.Get("Authorization") != "Bearer key-of-the-test" {
			http.Error(w, "no", http.StatusTeapot)
			return
		}
		r.mu.Lock()
		r.requests = append(r.requests, body)
		reply := r.reply
		r.mu.Unlock()
		reply(w)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *router) asked() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.requests)
}

func (r *router) client(t *testing.T, local bool) *OpenAI {
	t.Helper()
	o, err := NewOpenAI(OpenAIConfig{BaseURL: r.URL + "/v1", Key: "key-of-the-test", Model: "some/model", Backend: "openrouter", Local: local})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// answered is a reply that is all right.
func answered(text string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		content, _ := json.Marshal(text)
		fmt.Fprintf(w, `{"id":"1","choices":[{"message":{"role":"assistant","content":%s},"finish_reason":"stop"}],"usage":{"prompt_tokens":100,"completion_tokens":20,"cost":0.0025}}`, content)
	}
}

func status(code int, header map[string]string, body string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		for k, v := range header {
			w.Header().Set(k, v)
		}
		w.WriteHeader(code)
		io.WriteString(w, body)
	}
}

func TestOpenRouterAsks(t *testing.T) {
	r := newRouter(t)
	r.reply = answered(`{"ok":true}`)
	a, err := r.client(t, false).Chat(t.Context(), Query{System: "s", User: "u", Name: "n", Schema: json.RawMessage(`{"type":"object"}`), Output: 77})
	if err != nil || a.Text != `{"ok":true}` || a.PromptTokens != 100 || a.OutputTokens != 20 || a.Cost != 0.0025 {
		t.Fatalf("%+v, %v", a, err)
	}
	want := map[string]any{
		"model": "some/model", "max_tokens": 77.0, "temperature": 0.0, "usage": map[string]any{"include": true},
		"messages":        []any{map[string]any{"role": "system", "content": "s"}, map[string]any{"role": "user", "content": "u"}},
		"provider":        map[string]any{"require_parameters": true, "data_collection": "deny"},
		"response_format": map[string]any{"type": "json_schema", "json_schema": map[string]any{"name": "n", "strict": true, "schema": map[string]any{"type": "object"}}},
	}
	if diff := cmp.Diff(want, r.requests[0]); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
}

// TestOpenRouterErrors holds each way of failing to what can be done about it.
func TestOpenRouterErrors(t *testing.T) {
	tests := []struct {
		name   string
		reply  func(http.ResponseWriter)
		reason Reason
		retry  time.Duration
	}{
		{"error inside 200", status(200, nil, `{"error":{"code":502,"message":"provider went away"}}`), Unreachable, 0},
		{"error in the choice", status(200, nil, `{"choices":[{"message":{"content":""},"finish_reason":"error","error":{"code":503,"message":"overloaded"}}]}`), Busy, 0},
		{"error without a code inside 200", status(200, nil, `{"error":{"message":"odd"}}`), Unreachable, 0},
		{"no choices", status(200, nil, `{"choices":[]}`), Unreachable, 0},
		{"not JSON", status(200, nil, `<html>`), Unreachable, 0},
		{"not JSON, 502", status(502, nil, `<html>`), Unreachable, 0},
		{"401", status(401, nil, `{"error":{"code":401,"message":"No auth credentials found"}}`), Refused, 0},
		{"402 credits", status(402, nil, `{"error":{"code":402,"message":"Insufficient credits","metadata":{"limit_source":"openrouter_credits"}}}`), Refused, 0},
		{"402 in flight", status(402, map[string]string{"Retry-After": "7"}, `{"error":{"code":402,"message":"budget","metadata":{"limit_source":"openrouter_in_flight_budget"}}}`), Busy, 7 * time.Second},
		{"403 key", status(403, nil, `{"error":{"code":403,"message":"this key may not"}}`), Refused, 0},
		{"403 moderation", status(403, nil, `{"error":{"code":403,"message":"flagged","metadata":{"reasons":["violence"],"flagged_input":"kill -9"}}}`), Moderated, 0},
		{"403 guardrail", status(403, nil, `{"error":{"code":403,"message":"Prompt injection patterns detected"}}`), Moderated, 0},
		{"404", status(404, nil, `{"error":{"code":404,"message":"No endpoints found that support the parameters"}}`), Refused, 0},
		{"429", status(429, map[string]string{"Retry-After": "12"}, `{"error":{"code":429,"message":"slow down","metadata":{"error_type":"rate_limit_exceeded"}}}`), Busy, 12 * time.Second},
		{"429 for ever", status(429, map[string]string{"Retry-After": "999999"}, `{"error":{"code":429,"message":"x"}}`), Busy, 10 * time.Minute},
		{"400 context", status(400, nil, `{"error":{"code":400,"message":"This endpoint's maximum context length is 8192 tokens"}}`), TooLarge, 0},
		{"400", status(400, nil, `{"error":{"code":400,"message":"schema not supported"}}`), Invalid, 0},
		{"OpenAI's word for a code", status(429, nil, `{"error":{"code":"rate_limit_exceeded","message":"x"}}`), Busy, 0},
		{"refusal", status(200, nil, `{"choices":[{"message":{"content":"","refusal":"I cannot"},"finish_reason":"stop"}]}`), Moderated, 0},
		{"length", status(200, nil, `{"choices":[{"message":{"content":"{"},"finish_reason":"length"}]}`), Invalid, 0},
		{"blanks", answered("{" + strings.Repeat(" ", 300)), Invalid, 0},
		{"too much", answered(strings.Repeat("x", maxText+1)), Invalid, 0},
		{"endless", answered(strings.Repeat("x", 2*maxReply)), Unreachable, 0},
		{"redirect", status(307, map[string]string{"Location": "http://127.0.0.1:1/"}, ``), Refused, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRouter(t)
			r.reply = tt.reply
			_, err := r.client(t, false).Chat(t.Context(), Query{User: "u", Output: 10})
			f := wantReason(t, err, tt.reason)
			if f.RetryAfter != tt.retry {
				t.Errorf("retry after %s, want %s", f.RetryAfter, tt.retry)
			}
			if strings.Contains(f.Error(), "key-of-the-test") {
				t.Errorf("the error holds the key: %v", f)
			}
		})
	}
}

func TestOpenRouterHangs(t *testing.T) {
	r := newRouter(t)
	release := make(chan struct{})
	r.reply = func(http.ResponseWriter) { <-release }
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := r.client(t, false).Chat(ctx, Query{User: "u"})
	wantReason(t, err, Timeout)
	ctx, stop := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, stop)
	_, err = r.client(t, false).Chat(ctx, Query{User: "u"})
	wantReason(t, err, Stopped)
}

// agree answers a plan's question as a perfect model would.
func agree(p Plan) string {
	a := parsed{Name: p.Name, Trigger: p.Trigger, Env: []string{}, Setup: []string{}, Steps: []parsedStep{}, Cleanup: []string{}, Caches: []string{}}
	for _, v := range p.Env {
		a.Env = append(a.Env, v.Name)
	}
	for _, r := range p.refs() {
		a.Steps = append(a.Steps, parsedStep{Ref: r, Kind: "test"})
	}
	data, _ := json.Marshal(a)
	return string(data)
}

// A fork's text goes to no model in the cloud, a trusted one does, and a local model gets both.
func TestForksStayHome(t *testing.T) {
	for _, tt := range []struct {
		local, forked bool
		want          string
	}{{false, false, ""}, {false, true, "untrusted"}, {true, true, ""}} {
		r := newRouter(t)
		p := fixturePlan("x", 1, 2)
		p.Forked = tt.forked
		r.reply = answered(agree(p))
		s := New(Config{Clients: []Client{r.client(t, tt.local)}})
		got := s.Parse(t.Context(), p)
		if got.Reason != tt.want || (tt.want == "") != (got.By == tgr.ByModel) {
			t.Errorf("%+v: %s %s", tt, got.By, got.Reason)
		}
		e := s.Explain(t.Context(), Failure{Name: "x", Forked: tt.forked, Log: []LogLine{{1, "error: x"}}})
		if (tt.want != "") != (e.Reason == tt.want) {
			t.Errorf("%+v: explained: %q", tt, e.Reason)
		}
		if (r.asked() == 0) != (tt.want != "") {
			t.Errorf("%+v: %d requests", tt, r.asked())
		}
	}
}
