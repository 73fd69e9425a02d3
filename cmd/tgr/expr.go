package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/terraphim/tgr/expr"
)

// maxBatchLine bounds one line of `tgr expr eval --batch`.
const maxBatchLine = 32 << 20

// newExprCmd returns `tgr expr`, which computes expressions outside any workflow.
func newExprCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "expr",
		Short: "Work with the expression language of workflows",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newExprEvalCmd())
	return cmd
}

func newExprEvalCmd() *cobra.Command {
	var contexts string
	var batch bool
	cmd := &cobra.Command{
		Use:   "eval [--contexts file.json] EXPR | eval --batch",
		Short: "Compute an expression and print the result as JSON",
		Long: `Eval computes an expression, written without ${{ }}, and prints one line of JSON:
{"kind":…,"value":…,"text":…}, where text is the value as spliced into a string, or
{"error":{"kind":"lexing|parsing|evaluation","message":…,"line":…,"column":…}}.
Numbers that JSON cannot hold are the strings NaN, Infinity and -Infinity.

With --batch it reads lines {"expr":…,"contexts":{…}} from standard input and answers each in turn; the kind of the
error is "input" for a line that cannot be read. The known names are the keys of the contexts.

An expression's error is an answer like any other: the exit status is 0 unless the command itself fails.`,
		Example: `  tgr expr eval "format('{0} on {1}', github.ref, 'linux')" --contexts contexts.json`,
		// An expression may begin with a minus, so flags are told apart by hand.
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := cmd.Flags().Parse(flagsFirst(args)); err != nil {
				return err
			}
			args = cmd.Flags().Args()
			if help, err := cmd.Flags().GetBool("help"); err == nil && help {
				return cmd.Help()
			}
			switch {
			case batch && (len(args) > 0 || contexts != ""):
				return errors.New("--batch takes expressions and contexts from standard input, not from the command line")
			case batch:
				return evalBatch(cmd.InOrStdin(), cmd.OutOrStdout())
			case len(args) != 1:
				return fmt.Errorf("want one expression, got %d", len(args))
			default:
				return evalOne(cmd.OutOrStdout(), args[0], contexts)
			}
		},
	}
	cmd.Flags().StringVar(&contexts, "contexts", "", "`file` with a JSON object whose keys are the known contexts")
	cmd.Flags().BoolVar(&batch, "batch", false, "answer the lines of standard input")
	return cmd
}

// flagsFirst puts the flags of `tgr expr eval` before a --, and everything else, -1 for instance, after it.
func flagsFirst(args []string) []string {
	var flags, rest []string
	for i := 0; i < len(args); i++ {
		switch arg := args[i]; {
		case arg == "--":
			return append(append(append(flags, "--"), rest...), args[i+1:]...)
		case arg == "--contexts" && i+1 == len(args):
			return append(flags, arg) // no value: for the parser to complain about
		case arg == "--contexts":
			flags = append(flags, arg, args[i+1])
			i++
		case arg == "--batch", arg == "--help", arg == "-h", strings.HasPrefix(arg, "--contexts="), strings.HasPrefix(arg, "--batch="):
			flags = append(flags, arg)
		default:
			rest = append(rest, arg)
		}
	}
	return append(append(flags, "--"), rest...)
}

// evalOne prints the answer to one expression; contexts is a file, or empty.
func evalOne(out io.Writer, text, contexts string) error {
	env := &expr.Env{}
	if contexts != "" {
		data, err := os.ReadFile(contexts)
		if err != nil {
			return err
		}
		if env, err = exprEnv(data); err != nil {
			return fmt.Errorf("%s: %w", contexts, err)
		}
	}
	return printAnswer(out, evalExpr(text, env))
}

// exprAnswer is what `tgr expr eval` prints: either Error or the other three.
type exprAnswer struct {
	Kind  string      `json:"kind,omitempty"`
	Value *expr.Value `json:"value,omitempty"`
	Text  *string     `json:"text,omitempty"`
	Error *exprError  `json:"error,omitempty"`
}

// exprError is why there is no value. Line and Column are from 1.
type exprError struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Line    int    `json:"line"`
	Column  int    `json:"column"`
}

// evalExpr computes one expression.
func evalExpr(text string, env *expr.Env) exprAnswer {
	e, err := expr.Parse(text)
	var v expr.Value
	if err == nil {
		v, err = e.Eval(env)
	}
	var bad *expr.Error
	switch {
	case errors.As(err, &bad):
		return exprAnswer{Error: &exprError{Kind: bad.Kind.String(), Message: bad.Message, Line: bad.Line, Column: bad.Column}}
	case err != nil:
		return badInput(err)
	}
	spliced := v.Text()
	return exprAnswer{Kind: v.Kind().String(), Value: &v, Text: &spliced}
}

func badInput(err error) exprAnswer {
	return exprAnswer{Error: &exprError{Kind: "input", Message: err.Error(), Line: 1, Column: 1}}
}

// exprEnv makes an Env of a JSON object; null is an empty one.
func exprEnv(contexts []byte) (*expr.Env, error) {
	v, err := expr.FromJSON(contexts)
	if err != nil {
		return nil, err
	}
	if v.Kind() != expr.KindObject && v.Kind() != expr.KindNull {
		return nil, fmt.Errorf("want a JSON object, got %s", v.Kind())
	}
	return &expr.Env{Contexts: v.Object()}, nil
}

// evalBatch answers each line of in with one line on out, at once: a caller may wait for it. Blank lines are skipped.
func evalBatch(in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxBatchLine)
	for n := 1; lines.Scan(); n++ {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		if err := printAnswer(out, evalLine(line, n)); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("standard input: %w", err)
	}
	return nil
}

// evalLine computes {"expr":…,"contexts":{…}}, which is line n of the input.
func evalLine(line []byte, n int) exprAnswer {
	var question struct {
		Expr     *string         `json:"expr"`
		Contexts json.RawMessage `json:"contexts"`
	}
	if err := json.Unmarshal(line, &question); err != nil {
		return badInput(fmt.Errorf("input line %d: %w", n, err))
	}
	if question.Expr == nil {
		return badInput(fmt.Errorf("input line %d: no expr", n))
	}
	env := &expr.Env{}
	if len(question.Contexts) > 0 {
		var err error
		if env, err = exprEnv(question.Contexts); err != nil {
			return badInput(fmt.Errorf("input line %d: contexts: %w", n, err))
		}
	}
	return evalExpr(*question.Expr, env)
}

// printAnswer writes one line of JSON, without escapes for HTML.
func printAnswer(out io.Writer, a exprAnswer) error {
	var line bytes.Buffer
	enc := json.NewEncoder(&line)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(a); err != nil {
		return err
	}
	_, err := out.Write(line.Bytes())
	return err
}
