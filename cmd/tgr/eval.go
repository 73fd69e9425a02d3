package main

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"path"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/llm"
	"github.com/terraphim/tgr/workflow"
)

// evalData are workflows, and logs that real tools have written, with the line that tells the cause.
//
//go:embed evaldata
var evalData embed.FS

func newEvalCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "eval", Short: "Measure the parts that guess, on this machine and with your settings", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(newEvalLLMCmd(), newEvalLearnCmd())
	return cmd
}

func newEvalLLMCmd() *cobra.Command {
	var asJSON bool
	var limit time.Duration
	cmd := &cobra.Command{Use: "llm", Short: "Measure your language model on workflows and failing logs",
		Long: `Asks the model that the settings name about workflows and failing logs whose right answers are known, and prints how
many answers are valid, how many agree with the compiler or cite the true cause, how long they take and what they cost.

It asks no question twice from its cache. Exit status 3: there is no model, or it cannot be asked.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd.Flags())
			if err != nil {
				return err
			}
			r, err := evalLLM(cmd.Context(), c, limit, cmd.ErrOrStderr())
			if err != nil {
				return ours(err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), r)
			}
			return r.print(cmd.OutOrStdout())
		}}
	configFlags(cmd, "use-llm-parser", "ollama-base-url", "ollama-model", "openrouter-model", "llm-base-url", "llm-model")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().DurationVar(&limit, "limit", 2*time.Minute, "the most that a question may take; the server allows the default")
	return cmd
}

// evalReport is what was measured.
type evalReport struct {
	Model   string      `json:"model"`
	Digest  string      `json:"digest,omitempty"`
	Parse   evalFigures `json:"parse"`
	Explain evalFigures `json:"explain"`
	Cost    float64     `json:"cost_dollars"`
}

// evalFigures are those of one task.
type evalFigures struct {
	Asked   int             `json:"asked"`
	Valid   int             `json:"valid"`
	Agree   int             `json:"agree"` // with the compiler, or with the true cause
	Rules   int             `json:"rules"` // of failures: the rules alone name the true cause
	Tokens  int             `json:"tokens"`
	Reasons map[string]int  `json:"reasons,omitempty"` // why an answer did not count
	Took    []time.Duration `json:"took_ns"`
}

func (f *evalFigures) add(took time.Duration, reason string, agree bool) {
	f.Asked++
	f.Took = append(f.Took, took)
	if reason != "" {
		f.Reasons[reason]++
	}
	if reason == "" || reason == string(llm.Disagrees) {
		f.Valid++
	}
	if agree {
		f.Agree++
	}
}

// evalLLM asks everything once, without the cache of the server.
func evalLLM(ctx context.Context, c *config, limit time.Duration, progress io.Writer) (*evalReport, error) {
	clients, err := llmClients(c)
	if err != nil {
		return nil, err
	}
	r := &evalReport{Parse: evalFigures{Reasons: map[string]int{}}, Explain: evalFigures{Reasons: map[string]int{}}}
	service := llm.New(llm.Config{Clients: clients, Limit: limit, Log: slog.New(slog.DiscardHandler), Observe: func(e llm.Event) {
		figures := &r.Parse
		if e.Task == "explain" {
			figures = &r.Explain
		}
		figures.Tokens += e.PromptTokens + e.OutputTokens
		r.Cost += e.Cost
	}})
	if !service.Enabled() {
		return nil, tgr.Errorf("eval", tgr.Unavailable, "there is no model to measure: set USE_LLM_PARSER=true and OLLAMA_BASE_URL (or TGR_LLM_BASE_URL, or OPENROUTER_API_KEY)")
	}
	st := service.Check(ctx)[0]
	if st.Fault != nil {
		return nil, st.Fault
	}
	r.Model, r.Digest = st.Model.String(), st.Model.Digest
	if err := service.Warm(ctx); err != nil {
		return nil, err
	}
	files, err := evalData.ReadDir("evaldata")
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		data, err := evalData.ReadFile(path.Join("evaldata", f.Name()))
		if err != nil {
			return nil, err
		}
		fmt.Fprintln(progress, f.Name())
		switch path.Ext(f.Name()) {
		case ".yml":
			err = r.parse(ctx, service, f.Name(), data)
		case ".log":
			err = r.explain(ctx, service, f.Name(), data)
		}
		if err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *evalReport) parse(ctx context.Context, service *llm.Service, name string, data []byte) error {
	w, problems := workflow.Parse(name, data)
	if reason := firstProblem(problems); reason != "" {
		return fmt.Errorf("%s: %s", name, reason)
	}
	plan, problems := workflow.Compile(w, workflow.Options{Trigger: workflow.Trigger{Event: "push", Ref: "refs/heads/main"}})
	if reason := firstProblem(problems); reason != "" {
		return fmt.Errorf("%s: %s", name, reason)
	}
	executed, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	began := time.Now()
	p := service.Parse(ctx, planForModel(plan, executed, data, false))
	r.Parse.add(time.Since(began), p.Reason, p.By == tgr.ByModel)
	return nil
}

func (r *evalReport) explain(ctx context.Context, service *llm.Service, name string, data []byte) error {
	var causes map[string]int
	index, err := evalData.ReadFile("evaldata/causes.json")
	if err != nil {
		return err
	}
	if err := json.Unmarshal(index, &causes); err != nil {
		return err
	}
	f := llm.Failure{Name: strings.TrimSuffix(name, ".log")}
	for line := range strings.SplitSeq(strings.TrimSuffix(string(data), "\n"), "\n") {
		if command, ok := strings.CutPrefix(line, "##[group]Run "); ok {
			f.Number++
			f.Step, f.Command = command, command
		}
		f.Log = append(f.Log, llm.LogLine{Step: f.Number, Text: line})
	}
	began := time.Now()
	e := service.Explain(ctx, f)
	agree := slices.ContainsFunc(e.Claims, func(c tgr.Claim) bool {
		return slices.ContainsFunc(c.Lines, func(l tgr.CitedLine) bool { return l.N == causes[name] })
	})
	r.Explain.add(time.Since(began), e.Reason, agree)
	if e.Cause == causes[name] {
		r.Explain.Rules++
	}
	return nil
}

func firstProblem(problems []workflow.Problem) string {
	for _, p := range problems {
		if p.Severity == workflow.SeverityError {
			return p.String()
		}
	}
	return ""
}

func (r *evalReport) print(out io.Writer) error {
	fmt.Fprintf(out, "model   %s %.12s\n", r.Model, r.Digest)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "task\tasked\tvalid\tagree\trules alone\tmedian\tslowest\ttokens\treasons")
	for _, row := range []struct {
		name, rules string
		f           evalFigures
	}{{"parse", "-", r.Parse}, {"explain", fmt.Sprint(r.Explain.Rules), r.Explain}} {
		took := slices.Sorted(slices.Values(row.f.Took))
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\t%s\t%d\t%v\n", row.name, row.f.Asked, row.f.Valid, row.f.Agree, row.rules,
			took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond), row.f.Tokens, row.f.Reasons)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "cost    $%.4f\n", r.Cost)
	return err
}
