package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/terraphim/tgr/github"
)

// maxPayload is what `tgr webhook send` reads of a file: what a server takes at most.
const maxPayload = github.DefaultMaxBody

// newWebhookCmd is `tgr webhook`.
func newWebhookCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "webhook", Short: "Send webhooks as GitHub does"}
	cmd.AddCommand(newWebhookSendCmd())
	return cmd
}

// webhookSend is one call of `tgr webhook send`.
type webhookSend struct {
	url        string
	event      string
	delivery   string
	secretFile string
	timeout    time.Duration
}

func newWebhookSendCmd() *cobra.Command {
	s := &webhookSend{}
	cmd := &cobra.Command{
		Use:   "send --event NAME PAYLOAD.json",
		Short: "Sign a payload and post it to a server",
		Long: `send signs a payload with the webhook's secret, posts it as GitHub does, and prints the answer.
The secret is GITHUB_WEBHOOK_SECRET, or the content of the file named by --secret-file; it is never an argument, where
every user of the machine could read it. A payload named - is read from standard input.

The exit status is 0 if the server accepted the webhook (2xx), 1 if it refused it or could not be reached, and 2 if the
command line makes no sense.`,
		Example: "  tgr webhook send --event push push.json",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return s.run(cmd, args[0]) },
	}
	f := cmd.Flags()
	f.StringVar(&s.url, "url", "http://127.0.0.1:3000/webhook", "where the server receives webhooks")
	f.StringVar(&s.event, "event", "", "name of the event: push, pull_request, … (required)")
	f.StringVar(&s.delivery, "delivery", "", "id of the delivery; the same id again is a redelivery (default: a new one)")
	f.StringVar(&s.secretFile, "secret-file", "", "file with the secret (default: $GITHUB_WEBHOOK_SECRET)")
	f.DurationVar(&s.timeout, "timeout", 10*time.Second, "how long to wait for the answer; GitHub waits 10 s")
	return cmd
}

func (s *webhookSend) run(cmd *cobra.Command, name string) error {
	if s.event == "" {
		return usagef("--event is required: the event is never guessed from the payload")
	}
	secret, err := s.secret()
	if err != nil {
		return err
	}
	payload, err := readPayload(cmd.InOrStdin(), name)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(cmd.Context(), http.MethodPost, s.url, bytes.NewReader(payload))
	if err != nil {
		return usagef("--url: %w", err)
	}
	if s.delivery == "" {
		s.delivery = newDelivery()
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "GitHub-Hookshot/tgr")
	req.Header.Set("X-GitHub-Event", s.event)
	req.Header.Set("X-GitHub-Delivery", s.delivery)
	req.Header.Set("X-Hub-Signature-256", github.Sign(secret, payload))
	resp, err := (&http.Client{Timeout: s.timeout}).Do(req)
	if err != nil {
		return exitError{exitFailed, err}
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return exitError{exitFailed, fmt.Errorf("read the answer: %w", err)}
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s\ndelivery %s\n%s\n", resp.Status, s.delivery, bytes.TrimSpace(answer))
	if resp.StatusCode/100 != 2 {
		return exitError{code: exitFailed}
	}
	return nil
}

func (s *webhookSend) secret() ([]byte, error) {
	secret := os.Getenv("GITHUB_WEBHOOK_SECRET")
	if s.secretFile != "" {
		b, err := os.ReadFile(s.secretFile)
		if err != nil {
			return nil, usageError{err}
		}
		secret = strings.TrimRight(string(b), "\r\n")
	}
	if secret == "" {
		return nil, usagef("the webhook's secret is missing: set GITHUB_WEBHOOK_SECRET, or name a file with --secret-file")
	}
	return []byte(secret), nil
}

func readPayload(stdin io.Reader, name string) ([]byte, error) {
	r := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, usageError{err}
		}
		defer f.Close()
		r = f
	}
	payload, err := io.ReadAll(io.LimitReader(r, maxPayload+1))
	if err != nil {
		return nil, usageError{fmt.Errorf("read %s: %w", name, err)}
	}
	if len(payload) > maxPayload {
		return nil, usageError{errors.New(name + ": larger than 25 MiB, which GitHub never sends")}
	}
	return payload, nil
}

// newDelivery is an id in the form of GitHub's.
func newDelivery() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
