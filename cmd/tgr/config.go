package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v4"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/image"
	"github.com/terraphim/tgr/workflow"
)

// setting is one knob of the server. Flags beat the environment, which beats the file, which beats the default.
type setting struct {
	Key     string // of the file and the flag: "webhook-secret"
	Env     string
	Default string
	Secret  bool // never printed
	Help    string
}

// settings are all there are.
func settings() []setting {
	return []setting{
		{Key: "host", Env: "HOST", Default: "127.0.0.1", Help: "address to listen on"},
		{Key: "port", Env: "PORT", Default: "3000", Help: "port to listen on; 0 picks a free one"},
		{Key: "public-url", Env: "TGR_PUBLIC_URL", Help: "how people reach this server, for links in statuses; default: host and port"},
		{Key: "webhook-secret", Env: "GITHUB_WEBHOOK_SECRET", Secret: true, Help: "secret of the webhook; required"},
		{Key: "webhook-secret-previous", Env: "GITHUB_WEBHOOK_SECRET_PREVIOUS", Secret: true, Help: "another accepted secret, while it is being changed"},
		{Key: "webhook-rate", Env: "TGR_WEBHOOK_RATE", Default: "50", Help: "webhooks a second that one sender may send"},
		{Key: "github-token", Env: "GITHUB_TOKEN", Secret: true, Help: "token for fetching, statuses and comments"},
		{Key: "github-app-id", Env: "GITHUB_APP_ID", Help: "GitHub App to authenticate as, instead of a token"},
		{Key: "github-app-key-file", Env: "GITHUB_APP_KEY_FILE", Help: "private key of the App, a PEM file"},
		{Key: "github-api-url", Env: "GITHUB_API_URL", Default: "https://api.github.com", Help: "API of GitHub, or of an Enterprise server"},
		{Key: "github-server-url", Env: "GITHUB_SERVER_URL", Default: "https://github.com", Help: "where repositories are cloned from"},
		{Key: "repository-path", Env: "REPOSITORY_PATH", Help: "folder for the cached clones; default: repos below the data folder"},
		{Key: "actions-mirror", Env: "TGR_ACTIONS_MIRROR", Help: "folder with git repositories, OWNER/NAME or OWNER/NAME.git, that actions are taken from; those that are not there come from github-server-url"},
		{Key: "plan-timeout", Env: "TGR_PLAN_TIMEOUT", Default: "5", Help: "minutes that fetching a commit and reading its workflows may take, before it is tried again"},
		{Key: "max-job-minutes", Env: "TGR_MAX_JOB_MINUTES", Default: strconv.Itoa(workflow.MaxTimeout), Help: "minutes that a job may take at most, whatever its workflow says"},
		{Key: "job-token", Env: "TGR_JOB_TOKEN", Default: "app", Help: "GITHUB_TOKEN of jobs: app (made by the GitHub App for each job, with its permissions; none without an App), or server (without an App the server's own token, with all it may do, for trusted jobs)"},
		{Key: "job-permissions", Env: "TGR_JOB_PERMISSIONS", Default: "read", Help: "permissions of jobs whose workflow states none: read (contents and packages), or write (everything)"},
		{Key: "fork-approval", Env: "TGR_FORK_APPROVAL", Default: "first-time", Help: "whose pull requests from forks wait for approval: first-time (people of whom nothing was merged), all (who is not a member), or none"},
		{Key: "schedules", Env: "TGR_SCHEDULES", Default: "true", Help: "false: workflows are not started at the times of their on.schedule"},
		{Key: "secrets-key-file", Env: "TGR_SECRETS_KEY_FILE", Help: "file with the key of the secrets in the database; default: secrets.key below the data folder"},
		{Key: "data-dir", Env: "TGR_DATA_DIR", Default: defaultDataDir(), Help: "folder for the database, logs and machines"},
		{Key: "database-url", Env: "TGR_DATABASE_URL", Secret: true, Help: "PostgreSQL database for deliveries, runs and jobs: postgres://user:password@host/name; default: SQLite, tgr.db below the data folder"},
		{Key: "results-dir", Env: "TGR_RESULTS_DIR", Help: "folder for caches and artifacts; default: results below the data folder"},
		{Key: "cache-size", Env: "TGR_CACHE_SIZE", Default: "10240", Help: "caches of one repository, MiB; the least recently used go first"},
		{Key: "artifact-size", Env: "TGR_ARTIFACT_SIZE", Default: "10240", Help: "artifacts of one run, MiB"},
		{Key: "artifact-retention", Env: "TGR_ARTIFACT_RETENTION", Default: "90", Help: "days that artifacts are kept at most"},
		{Key: "s3-url", Env: "TGR_S3_URL", Help: "keep the bytes of caches and artifacts in this S3 bucket: https://host/bucket or https://host/bucket/prefix"},
		{Key: "s3-region", Env: "AWS_REGION", Default: "us-east-1", Help: "region of the bucket"},
		{Key: "s3-access-key", Env: "AWS_ACCESS_KEY_ID", Help: "access key of the bucket"},
		{Key: "s3-secret-key", Env: "AWS_SECRET_ACCESS_KEY", Secret: true, Help: "secret key of the bucket"},
		{Key: "max-concurrent-workflows", Env: "MAX_CONCURRENT_WORKFLOWS", Default: "5", Help: "jobs that run at once"},
		{Key: "isolation", Env: "TGR_ISOLATION", Default: "auto", Help: isolationHelp},
		{Key: "image", Env: "TGR_IMAGE", Default: image.DefaultName, Help: "image of the machines"},
		{Key: "labels", Env: "TGR_LABELS", Help: "machines by label of runs-on, as large=cpus:4,memory:8192,disk:20480 docker=image:full ubuntu-20.04= (MiB; nothing after the = is the default machine); GitHub's ubuntu labels are known"},
		{Key: "vm-memory", Env: "TGR_VM_MEMORY", Default: "1024", Help: "memory of a machine, MiB"},
		{Key: "vm-cpus", Env: "TGR_VM_CPUS", Default: "1", Help: "virtual processors of a machine"},
		{Key: "vm-disk", Env: "TGR_VM_DISK", Default: "8192", Help: "writable disk of a machine, MiB"},
		{Key: "vm-pool", Env: "TGR_VM_POOL", Default: "4096", Help: "memory that restored machines may take while they wait for jobs, MiB; 0: machines are booted, not restored"},
		{Key: "vm-network", Env: "TGR_VM_NETWORK", Default: "auto", Help: "network of a machine: slots (a namespace and a packet filter each; needs root), none, or user (which also reaches services on this host's loopback); auto is slots where that works"},
		{Key: "egress", Env: "TGR_EGRESS", Default: "open", Help: "what jobs reach through their slot: open (the public internet), none, or allow (the hosts of egress-allow)"},
		{Key: "egress-allow", Env: "TGR_EGRESS_ALLOW", Help: "hosts such as example.com, *.example.com or example.com:8443, separated by spaces or commas"},
		{Key: "egress-rate", Env: "TGR_EGRESS_RATE", Default: "1000", Help: "megabits a second that a machine sends at most, and receives"},
		{Key: "egress-connections", Env: "TGR_EGRESS_CONNECTIONS", Default: "4096", Help: "connections that a machine has at once"},
		{Key: "egress-new-connections", Env: "TGR_EGRESS_NEW_CONNECTIONS", Default: "500", Help: "new connections of a machine in a second"},
		{Key: "vm-api-url", Env: "FIRECRACKER_API_URL", Help: "VM management API whose machines jobs run on, http://127.0.0.1:8080; without one they run on this host's own"},
		{Key: "vm-api-token", Env: "FIRECRACKER_AUTH_TOKEN", Secret: true, Help: "token for that API; tgr vmd token issues one"},
		{Key: "vm-type", Env: "FIRECRACKER_VM_TYPE", Help: "machine that an API of the original kind is asked for; default: " + originalType},
		{Key: "vmd-listen", Env: "TGR_VMD_LISTEN", Default: defaultAPI, Help: "address that tgr vmd listens on; port 0 picks a free one"},
		{Key: "vmd-max-vms", Env: "TGR_VMD_MAX_VMS", Default: "0", Help: "machines that tgr vmd gives out at once; 0: what the host's memory has room for"},
		{Key: "api-token", Env: "TGR_TOKEN", Secret: true, Help: "bearer token that the API asks for; without one only this host may change anything"},
		{Key: "use-llm-parser", Env: "USE_LLM_PARSER", Default: "false", Help: "true: a language model annotates workflows and explains failures; it decides nothing"},
		{Key: "ollama-base-url", Env: "OLLAMA_BASE_URL", Help: "where Ollama is, such as http://127.0.0.1:11434"},
		{Key: "ollama-model", Env: "OLLAMA_MODEL", Default: "llama3.1", Help: "model of Ollama"},
		{Key: "openrouter-api-key", Env: "OPENROUTER_API_KEY", Secret: true, Help: "key of OpenRouter, which is asked where Ollama cannot answer; never about forks"},
		{Key: "openrouter-model", Env: "OPENROUTER_MODEL", Default: "openai/gpt-4o-mini", Help: "model of OpenRouter"},
		{Key: "llm-base-url", Env: "TGR_LLM_BASE_URL", Help: "any API of OpenAI's shape, up to and with /v1"},
		{Key: "llm-api-key", Env: "TGR_LLM_API_KEY", Secret: true, Help: "its key, if it wants one"},
		{Key: "llm-model", Env: "TGR_LLM_MODEL", Help: "its model"},
		{Key: "learn", Env: "TGR_LEARN", Default: "true", Help: "false: nothing is learnt from runs; what was learnt stays, unused"},
		{Key: "retry-flaky", Env: "TGR_RETRY_FLAKY", Default: "false", Help: "true: the failed jobs of a run that failed in nothing but steps known to be flaky run once more, as a second attempt"},
		{Key: "learn-timeouts", Env: "TGR_LEARN_TIMEOUTS", Default: "false", Help: "true: a job whose workflow states no time-out gets the one that its earlier durations suggest, max(3 x p99, p99 + 2 min)"},
		{Key: "log-level", Env: "TGR_LOG_LEVEL", Default: "info", Help: "debug, info, warn or error"},
		{Key: "log-format", Env: "TGR_LOG_FORMAT", Default: "text", Help: "text or json"},
	}
}

// config is the effective configuration.
type config struct {
	tgr.Redacted

	values map[string]string
	origin map[string]string
	file   string
	repos  map[string]map[string]string // the file's settings of single repositories
}

// repositorySettings are those that the file may also have for single repositories, below "repositories".
func repositorySettings() []string {
	return []string{"egress", "egress-allow", "egress-rate", "egress-connections", "egress-new-connections", "isolation"}
}

// loadConfig reads the configuration. The flags are those of the command that configFlags added.
func loadConfig(flags *pflag.FlagSet) (*config, error) {
	c := &config{values: map[string]string{}, origin: map[string]string{}}
	fromFile, err := c.readFile(flags)
	if err != nil {
		return nil, err
	}
	for _, s := range settings() {
		c.values[s.Key], c.origin[s.Key] = s.Default, "default"
		if v, ok := fromFile[s.Key]; ok {
			c.values[s.Key], c.origin[s.Key] = v, c.file
		}
		if v, ok := os.LookupEnv(s.Env); ok && v != "" {
			c.values[s.Key], c.origin[s.Key] = v, "$"+s.Env
		}
		if f := flags.Lookup(s.Key); f != nil && f.Changed {
			c.values[s.Key], c.origin[s.Key] = f.Value.String(), "--"+s.Key
		}
	}
	if c.values["secrets-key-file"] == "" {
		c.values["secrets-key-file"] = filepath.Join(c.values["data-dir"], "secrets.key")
	}
	if c.values["data-dir"], err = filepath.Abs(c.values["data-dir"]); err != nil { // the machines' processes have other folders
		return nil, usageError{err}
	}
	if c.values["repository-path"] == "" {
		c.values["repository-path"] = filepath.Join(c.values["data-dir"], "repos")
	}
	return c, nil
}

// readFile reads the configuration file, a flat YAML mapping. One that was named has to exist.
func (c *config) readFile(flags *pflag.FlagSet) (map[string]string, error) {
	named := os.Getenv("TGR_CONFIG")
	if f := flags.Lookup("config"); f != nil && f.Changed {
		named = f.Value.String()
	}
	c.file = named
	if named == "" {
		c.file = defaultConfigFile()
	}
	data, err := os.ReadFile(c.file)
	if errors.Is(err, fs.ErrNotExist) && named == "" {
		return nil, nil
	}
	if err != nil {
		return nil, usageError{fmt.Errorf("configuration file: %w", err)}
	}
	var node yaml.Node
	if err := yaml.Unmarshal(data, &node); err != nil {
		return nil, usagef("%s: %v", c.file, err)
	}
	values := map[string]string{}
	if len(node.Content) == 0 {
		return values, nil
	}
	top := node.Content[0]
	if top.Kind != yaml.MappingNode {
		return nil, usagef("%s:%d: expected a mapping of settings", c.file, top.Line)
	}
	for i := 0; i+1 < len(top.Content); i += 2 {
		key, value := top.Content[i], top.Content[i+1]
		if key.Value == "repositories" {
			if err := c.readRepositories(value); err != nil {
				return nil, err
			}
			continue
		}
		if !slices.ContainsFunc(settings(), func(s setting) bool { return s.Key == key.Value }) {
			return nil, usagef("%s:%d:%d: there is no setting %q; tgr config lists them", c.file, key.Line, key.Column, key.Value)
		}
		if value.Kind != yaml.ScalarNode {
			return nil, usagef("%s:%d:%d: %s: expected a single value", c.file, value.Line, value.Column, key.Value)
		}
		values[key.Value] = value.Value
	}
	return values, nil
}

// readRepositories reads a mapping of repositories, OWNER/NAME, to a few settings of their own.
func (c *config) readRepositories(node *yaml.Node) error {
	c.repos = map[string]map[string]string{}
	if node.Kind != yaml.MappingNode {
		return usagef("%s:%d:%d: repositories: expected a mapping of OWNER/NAME to settings", c.file, node.Line, node.Column)
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		name, own := node.Content[i], node.Content[i+1]
		if strings.Count(name.Value, "/") != 1 || own.Kind != yaml.MappingNode {
			return usagef("%s:%d:%d: repositories: %q: expected OWNER/NAME and a mapping of settings", c.file, name.Line, name.Column, name.Value)
		}
		values := map[string]string{}
		for j := 0; j+1 < len(own.Content); j += 2 {
			key, value := own.Content[j], own.Content[j+1]
			if !slices.Contains(repositorySettings(), key.Value) {
				return usagef("%s:%d:%d: a repository has no setting %q; it may have %s", c.file, key.Line, key.Column, key.Value, strings.Join(repositorySettings(), ", "))
			}
			if value.Kind != yaml.ScalarNode {
				return usagef("%s:%d:%d: %s: expected a single value", c.file, value.Line, value.Column, key.Value)
			}
			values[key.Value] = value.Value
		}
		c.repos[name.Value] = values
	}
	return nil
}

func (c *config) get(key string) string {
	v, ok := c.values[key]
	if !ok {
		panic("no setting " + key) // a typing error of ours, found by any test that starts the server
	}
	return v
}

// number is a setting that has to be a whole number in a range.
func (c *config) number(key string, least, most int) (int, error) {
	n, err := wholeNumber(c.get(key), least, most)
	if err != nil {
		return 0, usagef("%s (from %s) is %v", key, c.origin[key], err)
	}
	return n, nil
}

func wholeNumber(s string, least, most int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("%q: expected a whole number from %d to %d", s, least, most)
	}
	return n, nil
}

// oneOf is a setting with a few possible values.
func (c *config) oneOf(key string, values ...string) (string, error) {
	if !slices.Contains(values, c.get(key)) {
		return "", usagef("%s (from %s) is %q: expected %s", key, c.origin[key], c.get(key), strings.Join(values, ", "))
	}
	return c.get(key), nil
}

// configFlags gives a command a flag for each of the settings, or for those named.
func configFlags(cmd *cobra.Command, keys ...string) {
	for _, s := range settings() {
		if len(keys) > 0 && !slices.Contains(keys, s.Key) {
			continue
		}
		if s.Secret {
			continue // a secret in a command line is read by everybody on the host
		}
		cmd.Flags().String(s.Key, s.Default, s.Help+" ($"+s.Env+")")
	}
	cmd.Flags().String("config", "", "configuration file ($TGR_CONFIG; default "+defaultConfigFile()+")")
}

func defaultDataDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/tgr"
	}
	if dir := os.Getenv("XDG_DATA_HOME"); dir != "" {
		return filepath.Join(dir, "tgr")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ".tgr"
	}
	return filepath.Join(home, ".local", "share", "tgr")
}

func defaultConfigFile() string {
	if os.Geteuid() == 0 {
		return "/etc/tgr/config.yaml"
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return ".tgr/config.yaml"
	}
	return filepath.Join(dir, "tgr", "config.yaml")
}

func newConfigCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "config", Short: "Print the effective configuration and where each value comes from",
		Long: "Print the effective configuration and where each value comes from.\n\n" +
			"Flags beat environment variables, which beat the configuration file, which beats the defaults. Secrets are not shown.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd.Flags())
			if err != nil {
				return err
			}
			return c.print(cmd, asJSON)
		},
	}
	configFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (c *config) print(cmd *cobra.Command, asJSON bool) error {
	type row struct {
		Value  string `json:"value"`
		Origin string `json:"origin"`
		Env    string `json:"env"`
	}
	rows := map[string]row{}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	for _, s := range settings() {
		r := row{c.values[s.Key], c.origin[s.Key], s.Env}
		if s.Secret && r.Value != "" {
			r.Value = "(set)"
		}
		rows[s.Key] = r
		if !asJSON {
			fmt.Fprintf(w, "%s\t%s\t%s\n", s.Key, r.Value, r.Origin)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.repos)) {
		for _, key := range slices.Sorted(maps.Keys(c.repos[name])) {
			full := "repositories." + name + "." + key
			rows[full] = row{c.repos[name][key], c.file, ""}
			if !asJSON {
				fmt.Fprintf(w, "%s\t%s\t%s\n", full, c.repos[name][key], c.file)
			}
		}
	}
	if asJSON {
		enc := json.NewEncoder(cmd.OutOrStdout())
		enc.SetIndent("", "  ")
		return enc.Encode(rows)
	}
	return w.Flush()
}
