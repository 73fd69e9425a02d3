package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/github"
	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/llm"
	"github.com/terraphim/tgr/results"
	"github.com/terraphim/tgr/runner"
	"github.com/terraphim/tgr/store"
	"github.com/terraphim/tgr/vmapi"
	"github.com/terraphim/tgr/web"
	"github.com/terraphim/tgr/workflow"
)

// Whatever holds a secret shows *** where it is formatted or logged by itself, as a part of another, or by a pointer.
func TestNothingFormatsSecrets(t *testing.T) {
	const s = "hunter2"
	secrets := map[string]string{"A": s}
	job := runner.Job{Secrets: secrets, Token: s}
	openAI, err := llm.NewOpenAI(llm.OpenAIConfig{BaseURL: "http://127.0.0.1", Model: "m", Key: s})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{
		job, &job, runner.Config{ActionEnv: secrets}, runner.CheckoutRequest{Token: s},
		dispatch.Token{Value: s}, dispatch.Lease{Token: s}, &dispatch.Lease{Token: s}, dispatch.Grant{Lease: s, Token: s},
		dispatch.Resumption{Lease: &dispatch.Lease{Token: s}}, workflow.Scope{Secrets: secrets}, &workflow.Scope{Secrets: secrets},
		github.CheckoutSpec{Token: s, FetchToken: s}, github.ClientConfig{Token: s, AppKey: []byte(s)}, github.JobToken{Value: s},
		github.WebhookConfig{Secrets: [][]byte{[]byte(s)}}, guest.Cmd{Env: []string{"A=" + s}, Args: []string{s}},
		results.Job{Lease: s}, results.Runs{Token: s}, results.S3Config{SecretKey: s}, store.Lease{Token: s},
		llm.OpenAIConfig{Key: s}, openAI, vmapi.ClientConfig{Token: s}, vmapi.Config{Key: []byte(s)}, web.Config{Token: s},
		tgr.Setting{Name: "A", Value: s}, config{values: secrets}, &config{values: secrets},
	} {
		name := fmt.Sprintf("%T", v)
		got := map[string]string{}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			got[verb] = fmt.Sprintf(verb, v)
			got[verb+" in a slice"] = fmt.Sprintf(verb, []any{v})
			got[verb+" in a struct"] = fmt.Sprintf(verb, struct{ V any }{v})
		}
		got["print"] = fmt.Sprint(v) + fmt.Sprintln(v)
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "v", v)
		got["slog as text"] = log.String()
		log.Reset()
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "v", v)
		got["slog as JSON"] = log.String()
		for how, text := range got {
			if !strings.Contains(text, "***") || strings.Contains(text, s) || strings.Contains(text, fmt.Sprintf("%x", s)) || strings.Contains(text, "104 117 110") {
				t.Errorf("%s by %s: %s", name, how, text)
			}
		}
	}
}
