# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_steadfast_global_optspecs
    string join \n config= instance= h/help V/version
end

function __fish_steadfast_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_steadfast_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_steadfast_using_subcommand
    set -l cmd (__fish_steadfast_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c steadfast -n "__fish_steadfast_needs_command" -l config -d 'The config; without it /etc/steadfast/config.toml if it is there, else the embedded default' -r -F
complete -c steadfast -n "__fish_steadfast_needs_command" -l instance -d 'One of several services, steadfast@NAME.service, whose config is /etc/steadfast/NAME.toml' -r
complete -c steadfast -n "__fish_steadfast_needs_command" -s h -l help -d 'Print help'
complete -c steadfast -n "__fish_steadfast_needs_command" -s V -l version -d 'Print version'
complete -c steadfast -n "__fish_steadfast_needs_command" -f -a "run" -d 'Serve until SIGTERM or SIGINT'
complete -c steadfast -n "__fish_steadfast_needs_command" -f -a "check" -d 'Validate the config and print the tree it would run; nothing is bound'
complete -c steadfast -n "__fish_steadfast_needs_command" -f -a "reload" -d 'Have the running daemon hand over to a new process; returns when that serves'
complete -c steadfast -n "__fish_steadfast_needs_command" -f -a "status" -d 'Show what the running daemon is doing'
complete -c steadfast -n "__fish_steadfast_using_subcommand run" -l config -d 'The config; without it /etc/steadfast/config.toml if it is there, else the embedded default' -r -F
complete -c steadfast -n "__fish_steadfast_using_subcommand run" -l instance -d 'One of several services, steadfast@NAME.service, whose config is /etc/steadfast/NAME.toml' -r
complete -c steadfast -n "__fish_steadfast_using_subcommand run" -s h -l help -d 'Print help'
complete -c steadfast -n "__fish_steadfast_using_subcommand check" -l config -d 'The config; without it /etc/steadfast/config.toml if it is there, else the embedded default' -r -F
complete -c steadfast -n "__fish_steadfast_using_subcommand check" -l instance -d 'One of several services, steadfast@NAME.service, whose config is /etc/steadfast/NAME.toml' -r
complete -c steadfast -n "__fish_steadfast_using_subcommand check" -s h -l help -d 'Print help'
complete -c steadfast -n "__fish_steadfast_using_subcommand reload" -l config -d 'The config; without it /etc/steadfast/config.toml if it is there, else the embedded default' -r -F
complete -c steadfast -n "__fish_steadfast_using_subcommand reload" -l instance -d 'One of several services, steadfast@NAME.service, whose config is /etc/steadfast/NAME.toml' -r
complete -c steadfast -n "__fish_steadfast_using_subcommand reload" -s h -l help -d 'Print help'
complete -c steadfast -n "__fish_steadfast_using_subcommand status" -l config -d 'The config; without it /etc/steadfast/config.toml if it is there, else the embedded default' -r -F
complete -c steadfast -n "__fish_steadfast_using_subcommand status" -l instance -d 'One of several services, steadfast@NAME.service, whose config is /etc/steadfast/NAME.toml' -r
complete -c steadfast -n "__fish_steadfast_using_subcommand status" -l watch -d 'Follow it on a screen; not on a terminal: print it each second'
complete -c steadfast -n "__fish_steadfast_using_subcommand status" -l json -d 'As JSON, for scripts (docs/status.md)'
complete -c steadfast -n "__fish_steadfast_using_subcommand status" -s h -l help -d 'Print help'
