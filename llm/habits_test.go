package llm

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// habits is a server that speaks as Ollama does, and fails in its ways. Without it nothing of this would be tested where there is
// no real one.
type habits struct {
	*httptest.Server
	asked []map[string]any
}

func newHabits(t *testing.T, chat func(w http.ResponseWriter, r *http.Request)) *habits {
	h := &habits{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/tags", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"models":[{"name":"other:7b","digest":"0"},{"name":"here:latest","digest":"`+strings.Repeat("a", 64)+`beyond"},{"name":"big:120b-cloud","digest":"1"}]}`)
	})
	mux.HandleFunc("POST /api/chat", func(w http.ResponseWriter, r *http.Request) {
		var body map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		h.asked = append(h.asked, body)
		chat(w, r)
	})
	h.Server = httptest.NewServer(mux)
	t.Cleanup(h.Close)
	return h
}

func (h *habits) client(t *testing.T, model string) *Ollama {
	t.Helper()
	o, err := NewOllama(OllamaConfig{BaseURL: h.URL + "/", Model: model, Threads: 1, Context: 100})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

const lastLine = `{"message":{"content":""},"done":true,"done_reason":"stop","prompt_eval_count":40,"eval_count":3,"load_duration":1000,"prompt_eval_duration":2000,"eval_duration":3000}` + "\n"

// saying streams words and the last line.
func saying(words ...string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		for _, word := range words {
			text, _ := json.Marshal(word)
			fmt.Fprintf(w, "{\"message\":{\"role\":\"assistant\",\"content\":%s},\"done\":false}\n", text)
		}
		fmt.Fprint(w, lastLine)
	}
}

func replying(code int, header map[string]string, body string) func(http.ResponseWriter, *http.Request) {
	reply := status(code, header, body)
	return func(w http.ResponseWriter, _ *http.Request) { reply(w) }
}

// What is asked has all that was promised: a stream, the schema, nothing cut, the model kept loaded, and always the same words.
func TestOllamaAsks(t *testing.T) {
	h := newHabits(t, saying(`{"a":`, `1}`))
	a, err := h.client(t, "here").Chat(t.Context(), Query{System: "s", User: "u", Schema: json.RawMessage(`{"type":"object"}`), Output: 9})
	if err != nil || a.Text != `{"a":1}` || a.PromptTokens != 40 || a.OutputTokens != 3 || a.Load != 1000 || a.Prompt != 2000 || a.Generate != 3000 {
		t.Fatalf("%+v, %v", a, err)
	}
	want := map[string]any{"model": "here", "stream": true, "truncate": false, "keep_alive": "10m", "format": map[string]any{"type": "object"},
		"messages": []any{map[string]any{"role": "system", "content": "s"}, map[string]any{"role": "user", "content": "u"}},
		"options":  map[string]any{"temperature": 0.0, "seed": 1.0, "num_ctx": 100.0, "num_predict": 9.0, "num_thread": 1.0}}
	if diff := cmp.Diff(want, h.asked[0]); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
}

// TestOllamaErrors holds each way of failing to what can be done about it.
func TestOllamaErrors(t *testing.T) {
	for _, tt := range []struct {
		name   string
		chat   func(http.ResponseWriter, *http.Request)
		reason Reason
		retry  time.Duration
		says   string
	}{
		{"unknown model", replying(404, nil, `{"error":"model 'here' not found"}`), Refused, 0, "not found"},
		{"nothing but a status", replying(404, nil, ``), Refused, 0, "404"},
		{"busy", replying(503, nil, `{"error":"server busy, please try again.  maximum pending requests exceeded"}`), Busy, 0, "server busy"},
		{"a proxy that is busy", replying(503, map[string]string{"Retry-After": "9"}, `<html>`), Busy, 9 * time.Second, "503"},
		{"too long a prompt", replying(400, nil, `{"error":"the input length exceeds the context length"}`), TooLarge, 0, ""},
		{"bad schema", replying(500, nil, `{"error":"invalid JSON schema in format"}`), Invalid, 0, ""},
		{"no memory", replying(500, nil, `{"error":"model requires more system memory"}`), Unreachable, 0, "memory"},
		{"breaks off", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintln(w, `{"message":{"content":"{"},"done":false}`)
			fmt.Fprintln(w, `{"error":"an error was encountered while running the model"}`)
		}, Unreachable, 0, "broke off"},
		{"is loading", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintln(w, `{"error":"unexpected server status: llm server loading model"}`)
		}, Busy, 0, "loading"},
		{"ends early", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintln(w, `{"message":{"content":"{}"},"done":false}`)
		}, Unreachable, 0, "ended before"},
		{"not JSON", replying(200, nil, "<html>\n"), Unreachable, 0, "not JSON"},
		{"cut off", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, strings.Replace(lastLine, "stop", "length", 1))
		}, Invalid, 0, "length"},
		{"prompt was cut", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Replace(lastLine, "40", "100", 1)) }, TooLarge, 0, "cut to 100"},
		{"blanks for ever", saying("{", strings.Repeat(" \n\t", 100)), Invalid, 0, "blanks"},
		{"words for ever", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				fmt.Fprintf(w, "{\"message\":{\"content\":%q}}\n", strings.Repeat("word ", 1000))
			}
		}, Invalid, 0, "longer than"},
		{"one endless line", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"message":{"content":"`+strings.Repeat("x", 2*maxReply))
		}, Unreachable, 0, ""},
		{"redirect", replying(302, map[string]string{"Location": "http://192.0.2.1/steal"}, ``), Refused, 0, "302"},
		{"a terminal's escapes", replying(400, nil, `{"error":"\u001b[31mred\u202e"}`), Invalid, 0, "red"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := newHabits(t, tt.chat).client(t, "here").Chat(t.Context(), Query{User: "u", Output: 5})
			f := wantReason(t, err, tt.reason)
			if f.RetryAfter != tt.retry || !strings.Contains(f.Error(), tt.says) || strings.ContainsAny(f.Error(), "\x1b\u202e") || len(f.Error()) > 500 {
				t.Errorf("%q, retry after %s; want %q and %s", f.Error(), f.RetryAfter, tt.says, tt.retry)
			}
		})
	}
}

// A model is known by its digest; Ollama's cloud is not the operator's own machine.
func TestOllamaModel(t *testing.T) {
	h := newHabits(t, saying())
	for name, want := range map[string]Model{
		"here":           {Backend: "ollama", Name: "here:latest", Digest: strings.Repeat("a", 64) + "…"},
		"other:7b":       {Backend: "ollama", Name: "other:7b", Digest: "0"},
		"big:120b-cloud": {Backend: "ollama", Name: "big:120b-cloud", Digest: "1", Cloud: true},
	} {
		if got, err := h.client(t, name).Model(t.Context()); err != nil || got != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	_, err := h.client(t, "other").Model(t.Context())
	if f := wantReason(t, err, Refused); !strings.Contains(f.Message, "ollama pull other") {
		t.Error(f)
	}
	for name, reply := range map[string]func(http.ResponseWriter){
		"is not Ollama": status(200, nil, "<html>"), "HTTP status 503": status(503, nil, "<html>"), "HTTP status 401": status(401, nil, `{"error":"who are you"}`),
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { reply(w) }))
		o, err := NewOllama(OllamaConfig{BaseURL: srv.URL, Model: "x"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.Model(t.Context()); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		srv.Close()
	}
}

// A question that takes too long and one that is withdrawn end at the server too, at once.
func TestOllamaLetsGo(t *testing.T) {
	gone := make(chan struct{}, 2)
	h := newHabits(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, `{"message":{"content":"{"}}`)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		gone <- struct{}{}
	})
	o := h.client(t, "here")
	late, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := o.Chat(late, Query{User: "u"})
	wantReason(t, err, Timeout)
	<-gone
	stopped, stop := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, stop)
	_, err = o.Chat(stopped, Query{User: "u"})
	wantReason(t, err, Stopped)
	<-gone
}

func TestOllamaWarm(t *testing.T) {
	for name, tt := range map[string]struct {
		chat   func(http.ResponseWriter, *http.Request)
		reason Reason
	}{
		"loaded": {replying(200, nil, `{"done":true,"done_reason":"load"}`), ""}, "absent": {replying(404, nil, `{"error":"model 'x' not found"}`), Refused},
		"not done": {replying(200, nil, `{"done":false}`), Unreachable}, "not JSON": {replying(200, nil, `hello`), Unreachable},
	} {
		h := newHabits(t, tt.chat)
		err := h.client(t, "here").Warm(t.Context())
		if tt.reason == "" {
			if err != nil || len(h.asked[0]["messages"].([]any)) != 0 || h.asked[0]["keep_alive"] != "10m" {
				t.Errorf("%s: %v, %v", name, err, h.asked)
			}
			continue
		}
		wantReason(t, err, tt.reason)
	}
}

// An address with a password, of another scheme, or of nothing, is refused before anything is sent.
func TestAddresses(t *testing.T) {
	for _, bad := range []string{"", "localhost:11434", "ftp://x", "http://", "http://user:pass@x", "file:///etc/passwd", "http://x:port"} {
		if _, err := NewOllama(OllamaConfig{BaseURL: bad, Model: "m"}); err == nil {
			t.Errorf("Ollama at %q", bad)
		}
		if _, err := NewOpenAI(OpenAIConfig{BaseURL: bad, Model: "m"}); err == nil {
			t.Errorf("OpenAI at %q", bad)
		}
	}
	if _, err := NewOllama(OllamaConfig{BaseURL: "http://x"}); err == nil {
		t.Error("Ollama without a model")
	}
	if _, err := NewOpenAI(OpenAIConfig{BaseURL: "http://x"}); err == nil {
		t.Error("OpenAI without a model")
	}
}
