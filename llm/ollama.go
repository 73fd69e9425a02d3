package llm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"
)

// OllamaConfig says where Ollama is and how it is to be used. BaseURL and Model are required.
type OllamaConfig struct {
	BaseURL   string // http://127.0.0.1:11434
	Model     string // llama3.2:3b
	Context   int    // tokens of question and answer together; 0: 8192
	Threads   int    // num_thread; 0: Ollama's choice
	KeepAlive string // how long the model stays loaded after an answer; "": 10m
}

// Ollama is a [Client] of Ollama's native API. Its zero value is of no use: see [NewOllama].
type Ollama struct {
	c   OllamaConfig
	end endpoint
}

// NewOllama returns a client; it connects to nothing yet.
func NewOllama(c OllamaConfig) (*Ollama, error) {
	end, err := newEndpoint(c.BaseURL, "", true)
	if err != nil {
		return nil, err
	}
	if c.Model == "" {
		return nil, errors.New("llm: Ollama needs the name of a model")
	}
	if c.Context <= 0 {
		c.Context = 8192
	}
	if c.KeepAlive == "" {
		c.KeepAlive = "10m"
	}
	return &Ollama{c: c, end: end}, nil
}

// Model finds the model among those that are installed.
func (o *Ollama) Model(ctx context.Context) (Model, error) {
	resp, err := o.end.do(ctx, "/api/tags", nil)
	if err != nil {
		return Model{}, err
	}
	defer resp.Body.Close()
	var tags struct {
		Models []struct {
			Name   string `json:"name"`
			Digest string `json:"digest"`
		} `json:"models"`
		Error string `json:"error"`
	}
	err = json.NewDecoder(resp.Body).Decode(&tags)
	switch {
	case resp.StatusCode != http.StatusOK:
		return Model{}, statusFault(resp.StatusCode, resp.Header, tags.Error)
	case err != nil:
		return Model{}, &Fault{Reason: Unreachable, Message: "what answers is not Ollama", Err: netOr(ctx, err)}
	}
	for _, m := range tags.Models {
		if m.Name == o.c.Model || m.Name == o.c.Model+":latest" {
			// Names with this ending are run by Ollama's own cloud.
			return Model{Backend: "ollama", Name: m.Name, Digest: cut(m.Digest, 64), Cloud: cloudName(m.Name)}, nil
		}
	}
	return Model{}, faultf(Refused, "the model %s is not installed there; try: ollama pull %s", o.c.Model, o.c.Model)
}

func cloudName(model string) bool {
	return strings.HasSuffix(model, "-cloud") || strings.HasSuffix(model, ":cloud")
}

// netOr keeps the reason of a context that ended while a body was read.
func netOr(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return netFault(ctx, err)
	}
	return err
}

type ollamaChat struct {
	Model     string          `json:"model"`
	Messages  []message       `json:"messages"`
	Stream    bool            `json:"stream"`
	Format    json.RawMessage `json:"format,omitempty"`
	KeepAlive string          `json:"keep_alive"`
	Truncate  bool            `json:"truncate"` // versions before 0.17 do not know it: the prompt's size is checked as well
	Options   map[string]any  `json:"options"`
}

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// ollamaLine is one line of the stream.
type ollamaLine struct {
	Message    message       `json:"message"`
	Done       bool          `json:"done"`
	DoneReason string        `json:"done_reason"`
	Error      string        `json:"error"`
	Load       time.Duration `json:"load_duration"`
	Prompted   int           `json:"prompt_eval_count"`
	PromptTime time.Duration `json:"prompt_eval_duration"`
	Generated  int           `json:"eval_count"`
	GenTime    time.Duration `json:"eval_duration"`
}

// Chat streams, so that a runaway answer and a caller who has gone end at once.
func (o *Ollama) Chat(ctx context.Context, q Query) (Answer, error) {
	options := map[string]any{"temperature": 0, "seed": 1, "num_ctx": o.c.Context, "num_predict": q.Output}
	if o.c.Threads > 0 {
		options["num_thread"] = o.c.Threads
	}
	resp, err := o.end.do(ctx, "/api/chat", ollamaChat{Model: o.c.Model, Stream: true, Format: q.Schema, KeepAlive: o.c.KeepAlive,
		Messages: []message{{"system", q.System}, {"user", q.User}}, Options: options})
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var l ollamaLine
		_ = json.NewDecoder(resp.Body).Decode(&l) // what a proxy answers in its place is no JSON: the status tells
		return Answer{}, statusFault(resp.StatusCode, resp.Header, l.Error)
	}
	var text strings.Builder
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxReply)
	for lines.Scan() {
		var l ollamaLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return Answer{}, faultf(Unreachable, "a line of the stream is not JSON")
		}
		if l.Error != "" {
			return Answer{}, statusFault(http.StatusInternalServerError, nil, "the answer broke off: "+l.Error)
		}
		text.WriteString(l.Message.Content)
		if f := runaway(text.String()); f != nil {
			return Answer{}, f
		}
		if l.Done {
			return o.finish(l, text.String())
		}
	}
	return Answer{}, streamEnd(ctx, lines.Err())
}

func streamEnd(ctx context.Context, err error) *Fault {
	if ctx.Err() != nil {
		return netFault(ctx, ctx.Err())
	}
	return &Fault{Reason: Unreachable, Message: "the stream ended before the answer did", Err: err}
}

// finish judges the last line. A prompt that fills the context was cut, whatever the status says.
func (o *Ollama) finish(l ollamaLine, text string) (Answer, error) {
	a := Answer{Text: text, PromptTokens: l.Prompted, OutputTokens: l.Generated, Load: l.Load, Prompt: l.PromptTime, Generate: l.GenTime}
	switch {
	case l.Prompted >= o.c.Context:
		return a, faultf(TooLarge, "the question was cut to %d tokens", o.c.Context)
	case l.DoneReason != "stop":
		return a, faultf(Invalid, "the answer ended by %q, not by itself", cut(Strip(l.DoneReason), 30))
	}
	return a, nil
}

// runaway finds an answer that will come to nothing.
func runaway(text string) *Fault {
	if len(text) > maxText {
		return faultf(Invalid, "the answer is longer than %d bytes", maxText)
	}
	if tail := len(text) - len(strings.TrimRight(text, " \t\r\n")); tail > maxSpaces {
		return faultf(Invalid, "the answer is nothing but blanks from some point on")
	}
	return nil
}

// Warm loads the model, so that the first question does not wait for it.
func (o *Ollama) Warm(ctx context.Context) error {
	resp, err := o.end.do(ctx, "/api/chat", ollamaChat{Model: o.c.Model, KeepAlive: o.c.KeepAlive, Messages: []message{},
		Options: map[string]any{"num_ctx": o.c.Context}})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var l ollamaLine
	err = json.NewDecoder(resp.Body).Decode(&l)
	if resp.StatusCode != http.StatusOK {
		return statusFault(resp.StatusCode, resp.Header, l.Error)
	}
	if err != nil || !l.Done {
		return &Fault{Reason: Unreachable, Message: "the model was not loaded", Err: err}
	}
	return nil
}
