package main

import (
	"bytes"
	"context"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github"
)

func TestWebhookSend(t *testing.T) {
	const secret = "s3cret"
	var got []tgr.Delivery
	h, err := github.NewWebhookHandler(github.WebhookConfig{Secrets: [][]byte{[]byte(secret)},
		Accept: func(_ context.Context, d tgr.Delivery) ([]tgr.RunID, bool, error) {
			got = append(got, d)
			return []tgr.RunID{17}, true, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	defer srv.Close()
	dir := t.TempDir()
	file := func(name, content string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	payload := file("push.json", `{"ref":"refs/heads/main","after":"`+strings.Repeat("a", 40)+`","repository":{"id":1,"full_name":"ada/engine","default_branch":"main"}}`)
	good, bad := file("secret", secret+"\n"), file("bad", "guess")
	for _, tt := range []struct {
		name string
		args []string
		env  string
		exit int
		says string
	}{
		{"secret from the environment", []string{"--event", "push", payload}, secret, 0, `"run_ids":[17]`},
		{"secret from a file", []string{"--event", "push", "--secret-file", good, payload}, "", 0, "202 Accepted"},
		{"given delivery", []string{"--event", "push", "--delivery", "abc-1", payload}, secret, 0, "delivery abc-1"},
		{"wrong secret", []string{"--event", "push", "--secret-file", bad, payload}, secret, 1, "403 Forbidden"},
		{"no secret", []string{"--event", "push", payload}, "", 2, "secret is missing"},
		{"no event", []string{payload}, secret, 2, "--event is required"},
		{"no file", []string{"--event", "push", "nothing.json"}, secret, 2, "nothing.json"},
		{"no server", []string{"--event", "push", "--url", "http://127.0.0.1:1/", payload}, secret, 1, "refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("GITHUB_WEBHOOK_SECRET", tt.env)
			var out bytes.Buffer
			cmd := newWebhookCmd()
			cmd.SetOut(&out)
			cmd.SilenceUsage, cmd.SilenceErrors = true, true
			cmd.SetArgs(append([]string{"send", "--url", srv.URL}, tt.args...))
			err := cmd.ExecuteContext(t.Context())
			exit := 0
			if err != nil {
				var coded interface{ ExitCode() int }
				if !errors.As(err, &coded) {
					t.Fatalf("%v has no exit status", err)
				}
				exit = coded.ExitCode()
				out.WriteString(err.Error())
			}
			if exit != tt.exit || !strings.Contains(out.String(), tt.says) {
				t.Errorf("exit status %d, want %d; %q does not say %q", exit, tt.exit, out.String(), tt.says)
			}
			if strings.Contains(out.String(), secret) {
				t.Error("the output holds the secret")
			}
		})
	}
	if len(got) != 3 || got[2].ID != "abc-1" || got[0].Event.Name != "push" {
		t.Errorf("delivered %+v", got)
	}
}
