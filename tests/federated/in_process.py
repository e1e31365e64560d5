"""Flower without processes: calls the apps in turn, and keeps the bytes of every reply as Flower would send them."""

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.serde import message_to_proto, recorddict_from_proto, recorddict_to_proto
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity


class OneProcess(Grid):
    """A grid whose nodes are ClientApps in this process.

    Args:
        apps: One a node.
    """

    def __init__(self, apps):
        self.apps, self.sent, self.errors = apps, b"", []
        self.contexts = [
            Context(run_id=1, node_id=i + 1, node_config={"partition-id": i}, state=RecordDict(), run_config={})
            for i in range(len(apps))
        ]
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

    run = None

    def set_run(self, run):
        raise NotImplementedError

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    def push_messages(self, messages):
        raise NotImplementedError

    def pull_messages(self, message_ids):
        raise NotImplementedError

    def get_node_ids(self):
        return range(1, len(self.apps) + 1)

    def send_and_receive(self, messages, *, timeout=None):
        return [self._ask(message) for message in messages]

    def _ask(self, message):
        number = message.metadata.dst_node_id - 1
        message.metadata.__dict__["_message_id"] = message.object_id
        copied = recorddict_from_proto(recorddict_to_proto(message.content))
        given = Message(copied, metadata=message.metadata)
        try:
            reply = self.apps[number](given, self.contexts[number])
        except Exception as failure:  # as Flower's process of a ClientApp does
            self.errors.append(failure)
            reply = Message(Error(code=0, reason=f"{type(failure)}:<'{failure}'>"), reply_to=given)
        self.sent += message_to_proto(reply).SerializeToString()
        self.sent += b"".join(each.deflate() for each in get_all_nested_objects(reply).values())
        return reply
