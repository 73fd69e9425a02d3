// Package llm asks a language model about workflows and logs, and believes nothing of what it says.
//
// A model may annotate a plan that the compiler has made, and may explain a failure by citing lines that the server
// quotes itself. Whatever it is given was redacted and stripped; whatever it says is checked against what the server
// knows, and shown as text. It has no tools, no credentials and no say in what runs. Every part of this package works
// when there is no model at all: then the answer is a [Fault] with the reason.
package llm

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// Client speaks to one backend. Its methods are safe for concurrent use, send nothing but what they are given, and
// return errors that are a *[Fault].
type Client interface {
	// Model finds out which model would answer; it loads nothing. It fails when there is none.
	Model(ctx context.Context) (Model, error)
	// Chat has the model answer. ctx ends it at the backend too.
	Chat(ctx context.Context, q Query) (Answer, error)
}

// Model is who answers.
type Model struct {
	Backend string // ollama, openrouter, openai
	Name    string
	Digest  string // SHA-256 of the weights, in hex; "" where the backend does not tell
	Cloud   bool   // what it is sent leaves the operator's hands
}

// String is backend/name.
func (m Model) String() string { return m.Backend + "/" + m.Name }

// Query is one question, as it goes to the backend.
type Query struct {
	System string
	User   string
	Name   string          // of the schema: a word
	Schema json.RawMessage // JSON Schema of the answer
	Output int             // tokens that the answer may have
}

// Answer is what came back. Nothing of it is trustworthy.
type Answer struct {
	Text         string
	PromptTokens int // 0: the backend does not tell
	OutputTokens int
	Load         time.Duration // of the model, where the backend tells
	Prompt       time.Duration // reading the prompt
	Generate     time.Duration // writing the answer
	Cost         float64       // in US dollars, where the backend tells
}

// Reason is why there is no answer of a model. The values are few: they label metrics.
type Reason string

// The reasons.
const (
	Disabled    Reason = "disabled"    // it was not asked for, or there is no backend
	Untrusted   Reason = "untrusted"   // a fork's text does not go to a model in the cloud
	Unreachable Reason = "unreachable" // nobody answers there, or what answers is broken
	Timeout     Reason = "timeout"     // it took too long
	TooSlow     Reason = "too_slow"    // from measurements it would take too long: it was not asked
	TooLarge    Reason = "too_large"   // the question does not fit
	Breaker     Reason = "breaker"     // it failed too often and is left alone for a while
	Busy        Reason = "busy"        // it has too much to do
	Refused     Reason = "refused"     // it will not: key, credits, unknown model, moderation
	Moderated   Reason = "moderated"   // its guard dislikes this question
	Invalid     Reason = "invalid"     // the answer is not what was asked for
	Disagrees   Reason = "disagrees"   // the answer would execute something else
	Stopped     Reason = "stopped"     // the caller has gone
)

// Fault is why there is no answer.
type Fault struct {
	Reason     Reason
	Message    string
	RetryAfter time.Duration // the backend asked for this much patience; 0: it did not say
	Err        error
}

// Error is one line.
func (f *Fault) Error() string {
	s := "llm: " + string(f.Reason)
	if f.Message != "" {
		s += ": " + f.Message
	}
	if f.Err != nil {
		s += ": " + f.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (f *Fault) Unwrap() error { return f.Err }

func faultf(r Reason, format string, args ...any) *Fault {
	return &Fault{Reason: r, Message: fmt.Sprintf(format, args...)}
}
