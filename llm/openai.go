package llm

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/terraphim/tgr"
)

// OpenAIConfig says where an API of OpenAI's shape is. BaseURL and Model are required.
type OpenAIConfig struct {
	tgr.Redacted

	BaseURL string // up to and with /v1: /chat/completions follows
	Key     string // bearer token; "": none
	Model   string
	// Backend is the name in metrics and provenance: openrouter, or openai for any other. OpenRouter's is asked for
	// providers that honour the schema and keep no data.
	Backend string
	// Local says that the server is the operator's own, so that what is sent does not leave their hands.
	Local bool
}

// OpenRouterURL is where OpenRouter is.
const OpenRouterURL = "https://openrouter.ai/api/v1"

// OpenAI is a [Client] of OpenRouter, and of whatever else speaks the same dialect. Create one with [NewOpenAI].
type OpenAI struct {
	tgr.Redacted

	c   OpenAIConfig
	end endpoint
}

// NewOpenAI returns a client; it connects to nothing yet.
func NewOpenAI(c OpenAIConfig) (*OpenAI, error) {
	if c.Backend == "" {
		c.Backend = "openai"
	}
	if c.Model == "" {
		return nil, errors.New("llm: " + c.Backend + " needs the name of a model")
	}
	end, err := newEndpoint(c.BaseURL, c.Key, c.Local)
	return &OpenAI{c: c, end: end}, err
}

// Model says what was configured: these APIs have no digest, and asking for the list of models costs more than it tells.
func (o *OpenAI) Model(context.Context) (Model, error) {
	return Model{Backend: o.c.Backend, Name: o.c.Model, Cloud: !o.c.Local}, nil
}

type completion struct {
	Model    string         `json:"model"`
	Messages []message      `json:"messages"`
	Format   map[string]any `json:"response_format,omitempty"`
	Provider map[string]any `json:"provider,omitempty"`
	Usage    map[string]any `json:"usage,omitempty"`
	Temp     float64        `json:"temperature"`
	Max      int            `json:"max_tokens"`
}

type completed struct {
	Choices []struct {
		Message struct {
			Content string `json:"content"`
			Refusal string `json:"refusal"`
		} `json:"message"`
		Finish string    `json:"finish_reason"`
		Error  *apiError `json:"error"`
	} `json:"choices"`
	Usage struct {
		Prompt     int     `json:"prompt_tokens"`
		Completion int     `json:"completion_tokens"`
		Cost       float64 `json:"cost"`
	} `json:"usage"`
	Error *apiError `json:"error"`
}

// apiError is OpenRouter's; OpenAI's differs in Code, which is a word or null there.
type apiError struct {
	Code     json.RawMessage `json:"code"`
	Message  string          `json:"message"`
	Metadata struct {
		Type  string `json:"error_type"`
		Limit string `json:"limit_source"`
		// Of moderation: what it disliked, and what it saw.
		Reasons json.RawMessage `json:"reasons"`
		Flagged json.RawMessage `json:"flagged_input"`
	} `json:"metadata"`
}

// Chat asks for the whole answer at once. An error may come with any status, 200 too.
func (o *OpenAI) Chat(ctx context.Context, q Query) (Answer, error) {
	body := completion{Model: o.c.Model, Max: q.Output, Messages: []message{{"system", q.System}, {"user", q.User}}}
	if q.Schema != nil {
		body.Format = map[string]any{"type": "json_schema", "json_schema": map[string]any{"name": q.Name, "strict": true, "schema": q.Schema}}
	}
	if o.c.Backend == "openrouter" {
		// Without the first, providers that do not know schemas ignore ours.
		body.Provider = map[string]any{"require_parameters": true, "data_collection": "deny"}
		body.Usage = map[string]any{"include": true}
	}
	began := time.Now()
	resp, err := o.end.do(ctx, "/chat/completions", body)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return Answer{}, netFault(ctx, err)
	}
	var c completed
	if err := json.Unmarshal(data, &c); err != nil {
		if resp.StatusCode != http.StatusOK {
			return Answer{}, statusFault(resp.StatusCode, resp.Header, "")
		}
		return Answer{}, faultf(Unreachable, "the reply of %d bytes is not what this API sends", len(data))
	}
	if f := c.fault(resp); f != nil {
		return Answer{}, f
	}
	a := Answer{Text: c.Choices[0].Message.Content, PromptTokens: max(0, c.Usage.Prompt), OutputTokens: max(0, c.Usage.Completion),
		Generate: time.Since(began), Cost: max(0, c.Usage.Cost)}
	if f := runaway(a.Text); f != nil {
		return a, f
	}
	if why := c.Choices[0].Finish; why != "stop" {
		return a, faultf(Invalid, "the answer ended by %q, not by itself", cut(Strip(why), 30))
	}
	return a, nil
}

// fault is the error in the reply, wherever it is.
func (c completed) fault(resp *http.Response) *Fault {
	e := c.Error
	if e == nil && len(c.Choices) > 0 {
		e = c.Choices[0].Error
	}
	switch {
	case e != nil:
		return e.fault(resp)
	case resp.StatusCode != http.StatusOK:
		return statusFault(resp.StatusCode, resp.Header, "")
	case len(c.Choices) == 0:
		return faultf(Unreachable, "the reply has no answer")
	case c.Choices[0].Message.Refusal != "":
		return faultf(Moderated, "the model refuses: %s", cut(Strip(c.Choices[0].Message.Refusal), maxError))
	}
	return nil
}

// fault sorts an error by what can be done about it. The status inside the body counts more than the one outside.
func (e *apiError) fault(resp *http.Response) *Fault {
	status := resp.StatusCode
	var inside int
	if json.Unmarshal(e.Code, &inside) == nil && inside >= 400 && inside < 600 {
		status = inside
	}
	if status == http.StatusOK {
		status = http.StatusBadGateway
	}
	f := statusFault(status, resp.Header, e.Message)
	switch {
	case e.Metadata.Type == "context_length_exceeded" || strings.Contains(e.Message, "maximum context length"):
		f.Reason = TooLarge
	case status == http.StatusForbidden && (len(e.Metadata.Reasons)+len(e.Metadata.Flagged) > 0 || strings.Contains(strings.ToLower(e.Message), "injection")):
		f.Reason = Moderated // a log about security may do that; the next question may not
	case e.Metadata.Limit == "openrouter_in_flight_budget": // a 402 that passes
		f.Reason = Busy
	case e.Metadata.Type == "provider_overloaded", e.Metadata.Type == "rate_limit_exceeded":
		f.Reason = Busy
	}
	return f
}
